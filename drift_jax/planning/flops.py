"""FLOPs of a traced function, counted product by product.

Traced means: as jax differentiates and recomputes it, before a compiler sees it. So whatever the
function does is counted as often as it is done, and a change of the function changes the count.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.extend


class Flops(NamedTuple):
    """Floating-point operations of matrix products; two for a multiplication with its addition.

    Attributes:
      weights: products with a matrix that all rows share.
      rows: products that each row has with its own, which is attention.
    """

    weights: float = 0.0
    rows: float = 0.0

    @property
    def total(self) -> float:
        """Of both kinds."""
        return self.weights + self.rows

    def plus(self, other: "Flops", times: float = 1.0) -> "Flops":
        """With `times` that of another."""
        return Flops(self.weights + times * other.weights, self.rows + times * other.rows)


def count(function: Any, *arguments: Any) -> Flops:
    """FLOPs of one call, over all devices. Nothing is computed.

    A `while_loop` counts once, since nobody knows how often it turns.

    Args:
      function: jitted or not.
      arguments: arrays or their shapes.
    """
    plain = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), arguments)
    return _of(jax.make_jaxpr(function)(*plain).jaxpr)


def _of(jaxpr: Any) -> Flops:
    total = Flops()
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total = total.plus(_product(equation))
        elif name == "cond":
            branches = [_of(branch.jaxpr) for branch in equation.params["branches"]]
            total = total.plus(max(branches, key=lambda flops: flops.total))
        else:
            turns = equation.params["length"] if name == "scan" else 1
            for inner in _inner(equation.params):
                total = total.plus(_of(inner), turns)
    return total


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    """The functions that an equation calls."""
    for value in parameters.values():
        if isinstance(value, jax.extend.core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, jax.extend.core.Jaxpr):
            yield value


def _product(equation: Any) -> Flops:
    left, right = (variable.aval.shape for variable in equation.invars)
    (left_sum, _), (left_rows, _) = equation.params["dimension_numbers"]
    common = math.prod(left[axis] for axis in left_rows)
    summed = math.prod(left[axis] for axis in left_sum)
    flops = 2.0 * math.prod(left) * math.prod(right) / (common * summed)
    return Flops(rows=flops) if left_rows else Flops(weights=flops)
