"""Products are counted as often as they are done."""

import jax
import jax.numpy as jnp
import numpy as np

from drift_jax import config as configs
from drift_jax import shapes
from drift_jax.models.transformer import ModelConfig
from drift_jax.planning import estimate, memory, roofline, sizes
from drift_jax.planning.flops import Flops, count

A, B = jnp.ones((3, 5)), jnp.ones((5, 7))
PRODUCT = 2 * 3 * 5 * 7


def test_a_product_has_two_operations_for_every_pair_of_numbers():
    assert count(jnp.matmul, A, B) == Flops(weights=PRODUCT)
    batched = count(lambda x, y: jnp.einsum("bij,bjk->bik", x, y), A[None] * 1, B[None] * 1)
    assert batched == Flops(rows=PRODUCT)


def test_loops_count_every_turn_and_branches_the_dearest():
    def turns(a, b):
        return jax.lax.scan(lambda carry, _: (carry, a @ b), 0, None, length=11)[1]

    def branches(a, b):
        return jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: jnp.zeros((3, 7)))

    assert count(turns, A, B).total == 11 * PRODUCT
    assert count(jax.jit(turns), A, B).total == 11 * PRODUCT
    assert count(branches, A, B).total == PRODUCT


def test_a_gradient_counts_two_more_and_recomputation_one_more_again():
    def loss(a, b, c):
        return jnp.sum(jnp.sin(jnp.sin(a @ b) @ c))

    c = jnp.ones((7, 2))
    forward = PRODUCT + 2 * 3 * 7 * 2
    gradient = count(jax.grad(loss, argnums=(0, 1, 2)), A, B, c).total
    assert gradient == 3 * forward
    again = count(jax.grad(jax.checkpoint(loss), argnums=(0, 1, 2)), A, B, c).total
    assert again == 4 * forward


def test_an_update_costs_what_the_layers_the_scores_and_the_head_say():
    model = ModelConfig(97, 16, 24, 2, 4, 2, 8)
    of = configs.assign(
        configs.default(),
        {
            "rollout.problems_per_step": 4,
            "rollout.group_size": 2,
            "compute.micro_batch": 4,
            "compute.vocab_chunk": 32,
            "model.compute_dtype": "float32",
        },
    )
    lengths = shapes.Lengths(8, 16, 24)
    setting = memory.setting(of, model, estimate.mesh_of(of, 1), fused=False, lengths=lengths)
    counted = roofline.update_flops(of, model, setting)
    student, teacher, rows = lengths.student, lengths.teacher, 8
    # Forward and twice that backward for the student, forward for the teacher.
    scores = 4 * model.num_heads * model.head_dim * model.num_layers * rows
    assert counted.rows == scores * (3 * student**2 + teacher**2)
    layers = 2 * (3 * student + teacher) * rows
    norms = 16 + 2 * (16 + 16 + 8 + 8)  # parameters that are no matrix
    layers *= sizes.multiplied(model) - 97 * 16 - norms
    head = 2 * rows * lengths.response * 97 * 16
    passes = (counted.weights - layers) / head
    # Four of the loss and two of statistics at least; the plain head computes two of them again.
    assert passes in (6, 8)


def test_nothing_is_computed():
    huge = jax.ShapeDtypeStruct((2**20, 2**20), np.float32)
    assert count(jnp.matmul, huge, huge).total == 2.0 * 2**60
