"""Every numbered equation of the DRIFT paper (arXiv 2606.30345) as plain loops over plain numbers.

This is the slow, literal twin of the library, to be read with the paper in the other hand: one
sample, one token, one vocabulary entry at a time, in float64, with the paper's symbols in the
docstrings and without any trick for speed or stability. Where the paper is silent the reading
that the library takes is named in the docstring. Tests compare the library with these functions.

A sequence is a list with one number per response token, without padding; token t of the paper is
index t - 1. A distribution is a list of probabilities over the vocabulary.
"""

import math

import numpy as np

# ---- 2.1 GRPO and SDPO -------------------------------------------------------------------------


def group_advantages(rewards, scale_by_std=False):
    """A_i of one group of rollouts: the reward above the group's mean.

    `scale_by_std` divides by the sample standard deviation + 1e-6. A group of one has nothing to
    be compared with: its advantage is its reward.
    """
    n = len(rewards)
    if n == 1:
        return [float(rewards[0])]
    mean = sum(rewards) / n
    advantages = [r - mean for r in rewards]
    if scale_by_std:
        std = math.sqrt(sum(a * a for a in advantages) / (n - 1))
        advantages = [a / (std + 1e-6) for a in advantages]
    return advantages


def importance_ratio(log_prob, old_log_prob):
    """rho_{i,t} = pi_theta / pi_theta_old at the sampled token, its logarithm held in +-20."""
    return math.exp(min(max(log_prob - old_log_prob, -20.0), 20.0))


def clipped_surrogate(ratio, advantage, clip_low=0.2, clip_high=0.28, dual_clip=None):
    """The bracket of Eq. 1 at one token: min(rho A, clip(rho, 1 - eps, 1 + eps) A)."""
    clipped_ratio = min(max(ratio, 1.0 - clip_low), 1.0 + clip_high)
    surrogate = min(ratio * advantage, clipped_ratio * advantage)
    if dual_clip is not None and advantage < 0:
        surrogate = max(surrogate, dual_clip * advantage)
    return surrogate


def grpo_objective(ratios, advantages, clip_low=0.2, clip_high=0.28):
    """Eq. 1: the surrogate averaged over rollouts i and their tokens t."""
    terms = []
    for rho_i, a_i in zip(ratios, advantages, strict=True):
        for rho_it in rho_i:
            terms.append(clipped_surrogate(rho_it, a_i, clip_low, clip_high))
    return sum(terms) / len(terms)


def softmax(logits):
    """A distribution from logits."""
    largest = max(logits)
    weights = [math.exp(z - largest) for z in logits]
    return [w / sum(weights) for w in weights]


def kl(p, q):
    """KL(P || Q) in nats, with 0 log 0 = 0."""
    return sum(pv * math.log(pv / qv) for pv, qv in zip(p, q, strict=True) if pv > 0)


def entropy(p):
    """H(P) in nats, with 0 log 0 = 0."""
    return -sum(pv * math.log(pv) for pv in p if pv > 0)


def jensen_shannon(p, q, alpha=0.5):
    """Eq. 3 for alpha 1/2: JSD(P || Q) = 1/2 KL(P || M) + 1/2 KL(Q || M), M = 1/2 (P + Q).

    P is the student, Q the teacher. In general M = (1 - alpha) P + alpha Q with the same weights
    in front; alpha 0 means KL(Q || P) and alpha 1 means KL(P || Q).
    """
    if alpha == 0:
        return kl(q, p)
    if alpha == 1:
        return kl(p, q)
    m = [(1 - alpha) * pv + alpha * qv for pv, qv in zip(p, q, strict=True)]
    return (1 - alpha) * kl(p, m) + alpha * kl(q, m)


def top_k(p, q, k, rest="tail"):
    """P and Q on the k likeliest entries of P, plus one entry for all others, or renormalised."""
    largest = sorted(range(len(p)), key=lambda v: -p[v])[:k]
    p_k, q_k = [p[v] for v in largest], [q[v] for v in largest]
    if rest == "tail":
        return p_k + [1 - sum(p_k)], q_k + [1 - sum(q_k)]
    return [pv / sum(p_k) for pv in p_k], [qv / sum(q_k) for qv in q_k]


def sdpo_loss(student, teacher):
    """Eqs. 2 and 5: the divergence of student and teacher summed over the tokens of a response."""
    return sum(jensen_shannon(p_t, q_t) for p_t, q_t in zip(student, teacher, strict=True))


# ---- 3.1 curriculum teacher construction --------------------------------------------------------


def candidates(rewards, sample, success_threshold=0.5):
    """The successes of the group that may teach `sample`: never the sample itself."""
    return [j for j, r in enumerate(rewards) if r >= success_threshold and j != sample]


def stage_one_teacher(rewards, entropies, sample, success_threshold=0.5, reward_tolerance=0.1):
    """Warm-up: largest reward first, then, within delta of it, the highest entropy. None or index.

    r_max is that of the candidates; among equals the lowest index.
    """
    successes = candidates(rewards, sample, success_threshold)
    if not successes:
        return None
    r_max = max(rewards[j] for j in successes)
    near_best = [j for j in successes if r_max - reward_tolerance <= rewards[j] <= r_max]
    chosen = near_best[0]
    for j in near_best[1:]:
        if entropies[j] > entropies[chosen]:
            chosen = j
    return chosen


def stage_two_teacher(rewards, lengths, sample, success_threshold=0.5):
    """Mixed stage: the largest reward, then the shortest response, then the lowest index."""
    successes = candidates(rewards, sample, success_threshold)
    if not successes:
        return None
    chosen = successes[0]
    for j in successes[1:]:
        better = rewards[j] > rewards[chosen]
        shorter = rewards[j] == rewards[chosen] and lengths[j] < lengths[chosen]
        if better or shorter:
            chosen = j
    return chosen


def rhythm_objective(ratios, advantage, token_weights, clip_low=0.2, clip_high=0.28):
    """Eq. 6: J(y_i) = sum_t M_t min(rho_t A_i, clip(rho_t, 1 - eps, 1 + eps) A_i)."""
    return sum(
        m_t * clipped_surrogate(rho_t, advantage, clip_low, clip_high)
        for m_t, rho_t in zip(token_weights, ratios, strict=True)
    )


def mixed_loss(samples):
    """Eq. 4: the mean over samples of 1[incorrect] L_SDPO - gamma_i 1[correct] J_rhythm.

    A sample is a dict with `correct`, `gamma`, `student`, `teacher` (None: no success is known,
    and the term is 0), `ratios`, `advantage` and `token_weights`.
    """
    total = 0.0
    for y in samples:
        if not y["correct"]:
            if y["teacher"] is not None:
                total += sdpo_loss(y["student"], y["teacher"])
        else:
            total -= y["gamma"] * rhythm_objective(y["ratios"], y["advantage"], y["token_weights"])
    return total / len(samples)


def warmup_loss(samples):
    """Stage 1: Eq. 2 for every sample that has a teacher, right or wrong; the mean over samples."""
    distilled = [y for y in samples if y["teacher"] is not None]
    return sum(sdpo_loss(y["student"], y["teacher"]) for y in distilled) / len(samples)


# ---- 3.2 difficulty routing ---------------------------------------------------------------------


def pass_rate(rewards, success_threshold=0.5):
    """Eq. 7: r_now = n_correct / n."""
    n_correct = sum(1 for r in rewards if r >= success_threshold)
    return n_correct / len(rewards)


def smooth_pass_rate(past, now, decay=0.5):
    """Eq. 8: r = alpha r_past + (1 - alpha) r_now. On the first visit there is no past: r_now."""
    if past is None:
        return now
    return decay * past + (1 - decay) * now


def difficulty(rate, easy_above=0.8, hard_below=0.2):
    """Easy above r_easy, hard below r_hard, both strictly; everything between is medium."""
    if rate > easy_above:
        return "easy"
    if rate < hard_below:
        return "hard"
    return "medium"


def routing_weight(rate, easy_weight=0.5, medium_weight=1.0, hard_weight=0.0, **thresholds):
    """gamma_i of Eq. 4 by the problem's difficulty."""
    weights = {"easy": easy_weight, "medium": medium_weight, "hard": hard_weight}
    return weights[difficulty(rate, **thresholds)]


# ---- 3.3 rhythm-gated structured exploration ----------------------------------------------------


def exceedance(student_log_prob, teacher_log_prob, margin=0.2):
    """Eq. 9: Delta_t^+ = max(l_t^S - l_t^T - mu, 0)."""
    return max(student_log_prob - teacher_log_prob - margin, 0.0)


def rebellious_bonus(
    student_log_prob, teacher_log_prob, margin=0.2, bonus_temperature=1.0, max_bonus=2.0
):
    """Eq. 10: B_t = min(exp(tau Delta_t^+), B_max) and b_t = B_t - 1."""
    delta = exceedance(student_log_prob, teacher_log_prob, margin)
    return min(math.exp(bonus_temperature * delta), max_bonus) - 1


def entropy_drop(entropies, window=8):
    """Eq. 11: Drop(t) = max(mean H_past(t) - mean H_future(t), 0).

    past = [t - W, t - 1] and future = [t, t + W - 1], cut at the ends of the response; a position
    with an empty side has no drop.
    """
    n = len(entropies)
    drops = []
    for t in range(n):
        past = [entropies[j] for j in range(t - window, t) if j >= 0]
        future = [entropies[j] for j in range(t, t + window) if j < n]
        if not past or not future:
            drops.append(0.0)
        else:
            drops.append(max(sum(past) / len(past) - sum(future) / len(future), 0.0))
    return drops


def anchor_score(student_entropies, teacher_entropies, window=8):
    """Eq. 12: D_t = max(Drop_T(t) - Drop_S(t), 0) max(H_t^S - H_t^T, 0)."""
    drop_s = entropy_drop(student_entropies, window)
    drop_t = entropy_drop(teacher_entropies, window)
    return [
        max(drop_t[t] - drop_s[t], 0.0) * max(student_entropies[t] - teacher_entropies[t], 0.0)
        for t in range(len(drop_s))
    ]


def z_score(values):
    """(value - mean) / (population standard deviation + 1e-6) within one sequence."""
    n = len(values)
    mean = sum(values) / n
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / n)
    return [(v - mean) / (std + 1e-6) for v in values]


def anchor_gate(scores, gate_sharpness=1.0):
    """Eq. 13: g_t = 2 max(sigma(alpha_anc z_t) - 1/2, 0)."""
    gates = []
    for z in z_score(scores):
        sigma = 1 / (1 + math.exp(-gate_sharpness * z))
        gates.append(2 * max(sigma - 0.5, 0.0))
    return gates


def normalised_multiplier(gates, structure_scale=1.0):
    """Eq. 14, left: m_t = 1 + lambda_struct g_t, divided by its mean over the sequence."""
    m = [1 + structure_scale * g for g in gates]
    mean = sum(m) / len(m)
    return [m_t / mean for m_t in m]


def rhythm_multiplier(gates, structure_scale=1.0, min_multiplier=0.5, max_multiplier=2.0):
    """Eq. 14, right: the normalised multiplier clipped to [m_min, m_max]."""
    return [
        min(max(m, min_multiplier), max_multiplier)
        for m in normalised_multiplier(gates, structure_scale)
    ]


def rhythm_gate(
    student_entropies,
    teacher_entropies,
    window=8,
    gate_sharpness=1.0,
    structure_scale=1.0,
    min_multiplier=0.5,
    max_multiplier=2.0,
):
    """Eq. 15: g_t = clip((m_t - 1) / (m_max - 1), 0, 1), from Eqs. 11-14."""
    if not student_entropies:
        return []
    scores = anchor_score(student_entropies, teacher_entropies, window)
    gates = anchor_gate(scores, gate_sharpness)
    multipliers = rhythm_multiplier(gates, structure_scale, min_multiplier, max_multiplier)
    return [min(max((m - 1) / (max_multiplier - 1), 0.0), 1.0) for m in multipliers]


def token_weights(gates, bonuses, is_medium):
    """Eq. 16: M_t = 1 + beta g_t b_t."""
    beta = 1 if is_medium else 0
    return [1 + beta * g * b for g, b in zip(gates, bonuses, strict=True)]


# ---- 3.4 success buffer -------------------------------------------------------------------------


class Buffer:
    """Eqs. 17, 21 and 22: at most `capacity` pairs (response, reward) for each problem."""

    def __init__(self, capacity=3):
        self.capacity = capacity
        self.entries = {}

    def update(self, problem, response, reward):
        """Add while there is room (Eq. 21); then replace the lowest reward if beaten (Eq. 22)."""
        stored = self.entries.setdefault(problem, [])
        if len(stored) < self.capacity:
            stored.append((response, reward))
            return
        if not stored:
            return
        lowest = min(range(len(stored)), key=lambda j: stored[j][1])
        if reward > stored[lowest][1]:
            del stored[lowest]
            stored.append((response, reward))

    def draw(self, problem, rng: np.random.Generator):
        """Eq. 20: one stored response, each with the same chance; None from an empty buffer."""
        stored = self.entries.get(problem, [])
        return stored[rng.integers(len(stored))][0] if stored else None


def buffer_may_teach(epoch, fill_epochs=1):
    """Eq. 18: in epochs i <= k (counted from 1) the buffer is only filled."""
    return epoch > fill_epochs


def no_success_in(rewards, success_threshold=0.5):
    """Eq. 19: no rollout of the group is a success, by the one threshold used everywhere."""
    return not [r for r in rewards if r >= success_threshold]


def no_success_in_literal(rewards):
    """Eq. 19 as printed: no rollout of the group has r > 0."""
    return not [r for r in rewards if r > 0]
