"""Future credit (DistIL), and the exact gradient that it completes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drift_jax.losses.credit import future_credit
from drift_jax.losses.divergence import Divergence
from drift_jax.losses.vocab import head_loss
from tests import reference
from tests import reference_methods as literal

MASK = np.arange(6) < np.array([6, 0, 3, 1, 2])[:, None]


@pytest.mark.parametrize("kind", ["future_mean", "future_sum"])
def test_credit_equals_the_plain_loops(kind):
    divergence = np.random.default_rng(0).gamma(1.0, size=MASK.shape)
    with jax.enable_x64(True):
        ours = np.asarray(future_credit(divergence, MASK, mean=kind == "future_mean"))
    for row, mask, found in zip(divergence, MASK, ours, strict=True):
        np.testing.assert_allclose(
            found[mask], literal.future_credit(list(row[mask]), kind), rtol=1e-12
        )
    np.testing.assert_allclose(
        future_credit(divergence.astype(np.float32), MASK, mean=kind == "future_mean"),
        ours,
        rtol=1e-6,
        atol=1e-6,
    )


def test_three_tokens_by_hand():
    ours = future_credit([[1.0, 2.0, 4.0, 99.0]], [[True, True, True, False]])
    np.testing.assert_array_equal(ours, [[3.0, 4.0, 0.0, 0.0]])
    ours = future_credit([[1.0, 2.0, 4.0, 99.0]], [[True, True, True, False]], mean=False)
    np.testing.assert_array_equal(ours, [[6.0, 4.0, 0.0, 0.0]])


def test_what_lies_in_padding_changes_nothing_and_no_gradient_flows():
    divergence = np.random.default_rng(1).gamma(1.0, size=MASK.shape)
    clean = future_credit(np.where(MASK, divergence, 0.0), MASK)
    np.testing.assert_array_equal(future_credit(np.where(MASK, divergence, np.nan), MASK), clean)
    gradient = jax.grad(lambda d: future_credit(d, MASK).sum())(jnp.asarray(divergence))
    assert not np.any(np.asarray(gradient))


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"divergence \[5, 6\] and response_mask \[5, 5\]; give"):
        future_credit(np.zeros(MASK.shape), MASK[:, 1:])


# ---- a tree of three tokens and three steps: every rollout, and its probability ------------------

VOCAB, TIME = 3, 3
ROLLOUTS = np.array(list(itertools.product(range(VOCAB), repeat=TIME)))
# A state is what was said so far; each has logits of its own in a table.
STATES = [s for n in range(TIME) for s in itertools.product(range(VOCAB), repeat=n)]
PATHS = np.array([[STATES.index(tuple(y[:t])) for t in range(TIME)] for y in ROLLOUTS])


def trajectory_objective(table, teacher):
    """E_{y ~ pi} sum_t Hx(teacher, student) at the states of y, by enumeration."""
    p = [reference.softmax(z) for z in table]
    q = [reference.softmax(z) for z in teacher]
    total = 0.0
    for y, path in zip(ROLLOUTS, PATHS, strict=True):
        probability = math.prod(p[s][token] for s, token in zip(path, y, strict=True))
        for s in path:
            total += probability * -sum(
                qv * math.log(pv) for qv, pv in zip(q[s], p[s], strict=True)
            )
    return total


def surrogate_gradient(table, teacher, mean, divergence="forward_ce", with_credit=True):
    """The gradient that training takes, from the real head; hidden states pick a table's rows."""
    with jax.enable_x64(True):
        hidden = jnp.eye(len(STATES))[PATHS]
        p = jax.nn.softmax(table)
        weight = np.prod(np.asarray(p)[PATHS, ROLLOUTS], axis=1)[:, None] * np.ones((1, TIME))

        def loss(table, credit):
            return head_loss(
                hidden,
                hidden,
                table,
                teacher,
                ROLLOUTS,
                distill_weight=weight,
                policy_weight=0.0,
                credit_weight=weight * credit,
                divergence=Divergence(divergence),
                chunk=20,
            )

        distance = loss(table, 0.0)[1].divergence
        credit = future_credit(distance, np.ones(ROLLOUTS.shape, bool), mean=mean)
        gradient, _ = jax.grad(loss, has_aux=True)(jnp.asarray(table), with_credit * credit)
        return np.asarray(gradient)


def test_with_the_sum_the_gradient_is_that_of_the_whole_rollout_and_with_the_mean_it_is_not():
    rng = np.random.default_rng(2)
    table, teacher = rng.normal(size=(2, len(STATES), VOCAB))
    exact, step = np.zeros_like(table), 1e-5
    for at in np.ndindex(table.shape):
        up, down = table.copy(), table.copy()
        up[at] += step
        down[at] -= step
        rise = trajectory_objective(up, teacher) - trajectory_objective(down, teacher)
        exact[at] = rise / (2 * step)
    np.testing.assert_allclose(surrogate_gradient(table, teacher, mean=False), exact, atol=1e-9)
    assert np.abs(surrogate_gradient(table, teacher, mean=True) - exact).max() > 0.01
    # Without credit it is SDPO's gradient with the forward KL, whatever the entropy of the teacher.
    np.testing.assert_allclose(
        surrogate_gradient(table, teacher, mean=True, with_credit=False),
        surrogate_gradient(table, teacher, True, "forward_kl", with_credit=False),
        atol=1e-12,
    )
    # The sampled reverse KL has the gradient of the whole one in expectation.
    np.testing.assert_allclose(
        surrogate_gradient(table, teacher, True, "sampled_reverse_kl", with_credit=False),
        surrogate_gradient(table, teacher, True, "reverse_kl", with_credit=False),
        atol=1e-12,
    )
