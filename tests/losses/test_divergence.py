"""The divergences between student and teacher (DRIFT Eqs. 2-3)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drift_jax.losses.divergence import (
    DIVERGENCES,
    SAMPLED,
    Divergence,
    divergence_and_gradient,
    entropy,
    forward_cross_entropy,
    forward_kl,
    jensen_shannon,
    log_softmax,
    reverse_kl,
    sampled_reverse_kl,
    token_divergence,
    top_k_log_probs,
)
from tests import reference, reference_methods

STUDENT = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
TEACHER = np.array([0.5, 2.5, 0.0, -0.5, -3.0])
# alpha: over the whole vocabulary, over the student's top 2 with tail, over its top 2 renormalised.
GOLDEN = {
    0.0: (0.748464, 0.742470, 0.828725),
    0.25: (0.137335, 0.136142, 0.152914),
    0.5: (0.185993, 0.184287, 0.208126),
    1.0: (0.887365, 0.878994, 1.006842),
}
ALPHAS = (0.0, 0.1, 0.25, 0.5, 0.9, 1.0)
# Student and teacher logits of six positions: [6, 2, 4].
EXTREME = np.array(
    [
        ([1e4, -1e4, 0.0, 0.0], [-1e4, 1e4, 0.0, 0.0]),
        ([1e4, -1e4, 0.0, 0.0], [1e4, -1e4, 0.0, 0.0]),
        ([50.0, -50.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]),
        ([0.0, 1.0, -np.inf, 2.0], [0.0, 1.0, -np.inf, 2.0]),
        ([0.0, 1.0, -np.inf, 2.0], [0.0, 1.0, 1.0, -np.inf]),
        ([3e38, -3e38, 0.0, 0.0], [0.0, 3e38, 0.0, 0.0]),
    ],
    np.float32,
)


def pairs(seed, scale=3.0, shape=(4, 7)):
    rng = np.random.default_rng(seed)
    return scale * rng.normal(size=shape), scale * rng.normal(size=shape)


seeds = st.integers(0, 2**32 - 1)
scales = st.sampled_from([0.01, 1.0, 4.0, 30.0])


@pytest.mark.parametrize("alpha", GOLDEN)
def test_five_logits_give_the_golden_divergences(alpha):
    full, with_tail, renormalised = GOLDEN[alpha]
    tail = top_k_log_probs(STUDENT, TEACHER, k=2)
    scaled = top_k_log_probs(STUDENT, TEACHER, k=2, rest="renormalise")
    np.testing.assert_allclose(jensen_shannon(STUDENT, TEACHER, alpha=alpha), full, atol=1e-6)
    np.testing.assert_allclose(jensen_shannon(*tail, alpha=alpha), with_tail, atol=1e-6)
    np.testing.assert_allclose(jensen_shannon(*scaled, alpha=alpha), renormalised, atol=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_jensen_shannon_equals_the_literal_equation(alpha):
    student, teacher = pairs(0, shape=(2, 3, 11))
    with jax.enable_x64(True):
        ours = jensen_shannon(student, teacher, alpha=alpha)
        assert ours.dtype == jnp.float64 and ours.shape == (2, 3)
        for at in np.ndindex(2, 3):
            p, q = reference.softmax(student[at]), reference.softmax(teacher[at])
            np.testing.assert_allclose(
                ours[at], reference.jensen_shannon(p, q, alpha), rtol=1e-12, atol=1e-14
            )


def test_the_ends_of_alpha_are_the_two_kullback_leibler_divergences():
    student, teacher = pairs(1)
    forward = jensen_shannon(student, teacher, alpha=0)
    reverse = jensen_shannon(student, teacher, alpha=1)
    np.testing.assert_array_equal(forward, forward_kl(student, teacher))
    np.testing.assert_array_equal(reverse, reverse_kl(student, teacher))
    np.testing.assert_allclose(forward, reverse_kl(teacher, student), rtol=1e-6)
    # Special cases, not limits: the mixture formula goes to 0 towards both ends.
    assert np.all(jensen_shannon(student, teacher, alpha=1e-4) < 1e-2 * forward)
    assert np.all(jensen_shannon(student, teacher, alpha=1 - 1e-4) < 1e-2 * reverse)


@given(seeds, scales)
def test_jensen_shannon_lies_between_0_and_ln_2_and_is_symmetric(seed, scale):
    student, teacher = pairs(seed, scale)
    value = np.asarray(jensen_shannon(student, teacher))
    assert np.all(value > 0.0) and np.all(value <= np.log(2) + 1e-6)
    np.testing.assert_allclose(value, jensen_shannon(teacher, student), rtol=1e-5, atol=1e-9)


@given(seeds, scales, st.sampled_from(ALPHAS))
def test_equal_distributions_have_divergence_0_and_no_gradient(seed, scale, alpha):
    student, _ = pairs(seed, scale)
    loss = lambda z: jensen_shannon(z, student, alpha=alpha).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(student, jnp.float32))
    assert value == 0.0
    np.testing.assert_allclose(gradient, 0.0, atol=3e-7)


def test_disjoint_distributions_are_ln_2_apart():
    value = jensen_shannon([1e4, 0.0, 0.0], [0.0, 0.0, 1e4])
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)


def test_a_small_divergence_keeps_its_digits_in_float32():
    student = np.linspace(-2, 2, 50)
    teacher = student + 1e-2 * np.sin(np.arange(50))
    exact = reference.jensen_shannon(reference.softmax(student), reference.softmax(teacher))
    assert exact < 1e-5
    np.testing.assert_allclose(jensen_shannon(student, teacher), exact, rtol=2e-3)


@given(
    seeds,
    scales,
    st.integers(1, 7),
    st.sampled_from(["jsd", "forward_kl", "reverse_kl"]),
    st.sampled_from(["student", "teacher"]),
)
def test_merging_tokens_into_a_tail_never_increases_a_divergence(seed, scale, k, name, support):
    student, teacher = pairs(seed, scale)
    full = np.asarray(token_divergence(student, teacher, divergence=name))
    merged = np.asarray(
        token_divergence(student, teacher, divergence=name, top_k=k, support=support)
    )
    # The tail is never below 1e-7, which may add about that much where the teacher has less.
    assert np.all(merged <= full * (1 + 1e-5) + 3e-6)


@pytest.mark.parametrize("rest", ["tail", "renormalise"])
def test_top_k_log_probs_equal_the_literal_support(rest):
    student, teacher = pairs(2, shape=(5, 9))
    with jax.enable_x64(True):
        ours = top_k_log_probs(student, teacher, k=3, rest=rest)
        for row in range(5):
            p, q = reference.softmax(student[row]), reference.softmax(teacher[row])
            literal = reference.top_k(p, q, 3, rest)
            np.testing.assert_allclose(np.exp(ours[0][row]), literal[0], rtol=1e-10)
            np.testing.assert_allclose(np.exp(ours[1][row]), literal[1], rtol=1e-10)


def test_top_k_is_chosen_by_the_student():
    student_k, teacher_k = top_k_log_probs([0.0, 5.0, 0.0, 4.0], [9.0, 1.0, 8.0, 0.0], k=2)
    full_student = log_softmax([0.0, 5.0, 0.0, 4.0])
    full_teacher = log_softmax([9.0, 1.0, 8.0, 0.0])
    np.testing.assert_allclose(student_k[:2], full_student[np.array([1, 3])], rtol=1e-6)
    np.testing.assert_allclose(teacher_k[:2], full_teacher[np.array([1, 3])], rtol=1e-6)


@pytest.mark.parametrize("rest", ["tail", "renormalise", "drop"])
@pytest.mark.parametrize("support", ["student", "teacher"])
def test_every_support_and_cap_equals_the_plain_loops(support, rest):
    student, teacher = pairs(12, shape=(4, 9))
    targets = np.array([0, 3, 8, 1])
    for divergence in (*DIVERGENCES, SAMPLED):
        for top_k, cap in ((0, 0.05), (3, 0.0), (3, 0.05)):
            method = {
                "divergence": divergence,
                "alpha": 0.3,
                "top_k": top_k,
                "rest": rest,
                "support": support,
                "pointwise_cap": cap,
            }
            with jax.enable_x64(True):
                exact = token_divergence(student, teacher, **method, targets=targets)
            for row, token in enumerate(targets):
                p, q = reference.softmax(student[row]), reference.softmax(teacher[row])
                literal = reference_methods.divergence(p, q, token, method)
                np.testing.assert_allclose(exact[row], literal, rtol=1e-9, atol=1e-12)
            ours = token_divergence(student, teacher, **method, targets=targets)
            np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6)


def test_an_entry_above_the_cap_has_no_gradient():
    capped = lambda z: token_divergence(z, TEACHER, divergence="forward_ce", pointwise_cap=1e-6)  # noqa: E731
    assert not np.any(np.asarray(jax.grad(capped)(jnp.asarray(STUDENT))))


def test_the_sampled_reverse_kl_is_the_log_ratio_with_the_score_gradient():
    both = [np.log(reference.softmax(z)) for z in (STUDENT, TEACHER)]
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(sampled_reverse_kl)(jnp.asarray(STUDENT), TEACHER, 1)
    ratio = both[0][1] - both[1][1]
    np.testing.assert_allclose(value, ratio, rtol=1e-12)
    np.testing.assert_allclose(gradient, ratio * (np.eye(5)[1] - np.exp(both[0])), rtol=1e-10)


def test_the_top_of_the_whole_vocabulary_is_the_whole_vocabulary():
    student, teacher = pairs(3)
    full = jensen_shannon(student, teacher)
    np.testing.assert_allclose(
        jensen_shannon(*top_k_log_probs(student, teacher, k=7)), full, rtol=1e-5
    )
    np.testing.assert_allclose(
        jensen_shannon(*top_k_log_probs(student, teacher, k=7, rest="renormalise")), full, rtol=1e-5
    )


def test_log_probs_are_logits_too():
    student, teacher = pairs(4)
    for divergence in DIVERGENCES:
        np.testing.assert_allclose(
            token_divergence(log_softmax(student), log_softmax(teacher), divergence=divergence),
            token_divergence(student, teacher, divergence=divergence),
            rtol=1e-5,
        )


def test_cross_entropy_is_forward_kl_plus_the_entropy_of_the_teacher():
    student, teacher = pairs(5)
    np.testing.assert_allclose(
        forward_cross_entropy(student, teacher),
        forward_kl(student, teacher) + entropy(teacher),
        rtol=1e-5,
    )
    gradient_of = lambda f: jax.grad(lambda z: f(z, teacher).sum())(jnp.asarray(student))  # noqa: E731
    np.testing.assert_allclose(
        gradient_of(forward_cross_entropy), gradient_of(forward_kl), atol=1e-6
    )


def test_entropy_equals_the_literal_sum_and_lies_between_0_and_log_vocab():
    logits, _ = pairs(6, scale=10.0)
    ours = np.asarray(entropy(logits))
    literal = [reference.entropy(reference.softmax(row)) for row in logits]
    np.testing.assert_allclose(ours, literal, rtol=1e-5, atol=3e-7)
    np.testing.assert_allclose(entropy(np.zeros(7)), np.log(7), rtol=1e-6)
    assert entropy(np.array([1e4, 0.0, -1e4])) == 0.0


def test_the_gradient_of_jensen_shannon_has_the_closed_form():
    """d JSD / d z_v = (1 - alpha) P_v (log P_v / M_v - sum_u P_u log P_u / M_u)."""
    with jax.enable_x64(True):
        for alpha in (0.25, 0.5, 0.9):
            gradient = jax.grad(lambda z, a=alpha: jensen_shannon(z, TEACHER, alpha=a))(
                jnp.asarray(STUDENT)
            )
            p = np.array(reference.softmax(STUDENT))
            m = (1 - alpha) * p + alpha * np.array(reference.softmax(TEACHER))
            closed = (1 - alpha) * p * (np.log(p / m) - np.sum(p * np.log(p / m)))
            np.testing.assert_allclose(gradient, closed, rtol=1e-11)


WRITTEN_OUT = [
    *(Divergence("jsd", alpha=alpha) for alpha in ALPHAS),
    *(Divergence(name) for name in DIVERGENCES if name != "jsd"),
]


@pytest.mark.parametrize("of", WRITTEN_OUT, ids=str)
def test_the_gradient_that_is_written_out_equals_the_one_of_jax(of):
    with jax.enable_x64(True):
        student, teacher = (log_softmax(x) for x in pairs(21))
        targets = jnp.zeros(student.shape[:-1], jnp.int32)
        value, gradient = divergence_and_gradient(student, teacher, targets, of)

        def plain(z):
            each = token_divergence(z, teacher, divergence=of.name, alpha=of.alpha)
            return each.sum(), each

        want, want_value = jax.grad(plain, has_aux=True)(student)
        np.testing.assert_allclose(value, want_value, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(gradient, want, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("of", WRITTEN_OUT, ids=str)
def test_the_gradient_that_is_written_out_is_finite_where_probabilities_vanish(of):
    student = jnp.array([[0.0, -jnp.inf, -1e4, 3.0], [-jnp.inf, 0.0, 1e30, -1e30]])
    teacher = student[:, ::-1]
    both = divergence_and_gradient(
        log_softmax(student), log_softmax(teacher), jnp.zeros(2, jnp.int32), of
    )
    assert all(np.all(np.isfinite(np.asarray(x))) for x in both)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("top_k", [0, 2])
def test_no_gradient_reaches_the_teacher(divergence, top_k):
    student, teacher = (jnp.asarray(x, jnp.float32) for x in pairs(7))
    loss = lambda s, t: token_divergence(s, t, divergence=divergence, top_k=top_k).sum()  # noqa: E731
    to_student, to_teacher = jax.grad(loss, argnums=(0, 1))(student, teacher)
    assert np.all(np.asarray(to_teacher) == 0.0)
    assert np.any(np.asarray(to_student) != 0.0)


@pytest.mark.parametrize("divergence, alpha", [*((d, 0.5) for d in DIVERGENCES), ("jsd", 0.1)])
@pytest.mark.parametrize("top_k, rest", [(0, "tail"), (2, "tail"), (2, "renormalise")])
def test_saturated_logits_have_finite_values_and_gradients(divergence, alpha, top_k, rest):
    def loss(student_logits):
        value = token_divergence(
            student_logits,
            EXTREME[:, 1],
            divergence=divergence,
            alpha=alpha,
            top_k=top_k,
            rest=rest,
        )
        return value.sum(), value

    (_, value), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(EXTREME[:, 0]))
    assert np.all(np.isfinite(np.asarray(value))) and np.all(np.isfinite(np.asarray(gradient)))
    if divergence == "jsd":
        assert np.all((value >= -1e-7) & (value <= np.log(2) + 1e-6))


def test_saturated_logits_have_a_finite_entropy():
    value = np.asarray(entropy(EXTREME))
    gradient = jax.grad(lambda z: entropy(z).sum())(jnp.asarray(EXTREME))
    assert np.all((value >= 0.0) & (value <= np.log(4) + 1e-6))
    assert np.all(np.isfinite(np.asarray(gradient)))


def test_bfloat16_is_computed_in_float32():
    student, teacher = (jnp.asarray(x, jnp.bfloat16) for x in pairs(8))
    value = jensen_shannon(student, teacher)
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(
        value, jensen_shannon(student.astype(jnp.float32), teacher.astype(jnp.float32))
    )


def test_bad_arguments_are_answered_with_what_to_give():
    student, teacher = pairs(9)
    with pytest.raises(ValueError, match=r"alpha=1.5; give a number from 0 to 1"):
        jensen_shannon(student, teacher, alpha=1.5)
    with pytest.raises(ValueError, match=r"\[4, 7\] and teacher_logits \[7\]"):
        jensen_shannon(student, teacher[0])
    with pytest.raises(ValueError, match=r"k=8 for a vocabulary of 7"):
        top_k_log_probs(student, teacher, k=8)
    with pytest.raises(ValueError, match=r"rest='gone'; give one of tail, renormalise, drop"):
        top_k_log_probs(student, teacher, k=2, rest="gone")
    with pytest.raises(
        ValueError, match=r"divergence='js'; give one of jsd, forward_kl, reverse_kl"
    ):
        token_divergence(student, teacher, divergence="js")
    with pytest.raises(ValueError, match=r"support='both'; give one of student, teacher"):
        top_k_log_probs(student, teacher, k=2, support="both")
    with pytest.raises(ValueError, match=r"sampled_reverse_kl without targets; give the tokens"):
        token_divergence(student, teacher, divergence=SAMPLED)
