"""The rivals of DRIFT, and its ablations, as plain loops; reference.py is DRIFT itself.

A sample is a dict: `student` and `teacher` are its logits, one list per token; `tokens` are the
sampled ones; `advantage`, `u`, `v` and `beta` are its numbers; `policy_row`, `distill_row`,
`taught` and `fresh` its flags; `old` and `sampler` the log-probs of its tokens under the policy at
the start of the step (None: the present one) and under the sampler. `method` has the constants,
named as in the configuration.

A loss is differentiated with everything held that carries no gradient: `constants` computes that
once, `token_loss` is what moves with the student's logits.
"""

import math

import numpy as np

from tests import reference
from tests.reference import entropy, softmax

# ---- divergences over a support -----------------------------------------------------------------


def support_of(p, q, top_k, support, rest):
    """P and Q on the k likeliest entries of the chooser, and what becomes of the others."""
    chooser = p if support == "student" else q
    largest = sorted(range(len(p)), key=lambda v: -chooser[v])[:top_k]
    p_k, q_k = [p[v] for v in largest], [q[v] for v in largest]
    if rest == "tail":
        return p_k + [1 - sum(p_k)], q_k + [1 - sum(q_k)]
    if rest == "renormalise":
        return [x / sum(p_k) for x in p_k], [x / sum(q_k) for x in q_k]
    return p_k, q_k


def entry(name, alpha, pv, qv):
    """One vocabulary entry's part of a divergence of student P and teacher Q."""
    if name == "forward_kl":
        return qv * math.log(qv / pv)
    if name == "reverse_kl":
        return pv * math.log(pv / qv)
    if name == "forward_ce":
        return -qv * math.log(pv)
    mv = (1 - alpha) * pv + alpha * qv
    return (1 - alpha) * pv * math.log(pv / mv) + alpha * qv * math.log(qv / mv)


def divergence(p, q, token, method):
    """The divergence that `method` names at one position, in nats."""
    if method["divergence"] == "sampled_reverse_kl":
        return math.log(p[token]) - math.log(q[token])
    if method["top_k"]:
        p, q = support_of(p, q, method["top_k"], method["support"], method["rest"])
    total = 0.0
    for pv, qv in zip(p, q, strict=True):
        part = entry(method["divergence"], method["alpha"], pv, qv)
        if method["pointwise_cap"]:
            part = min(part, method["pointwise_cap"])
        total += part
    return total


# ---- token weights and credit -------------------------------------------------------------------


def evidence_weight(kind, student_log_prob, teacher_log_prob, advantage, scale=0.5, clip=0.2):
    """RLSD: (1 - lambda) + lambda clip(exp(sign(A) (l_T - l_S))); RLRT has the roles exchanged."""
    difference = teacher_log_prob - student_log_prob
    if kind == "rlrt":
        difference = -difference
    sign = int(advantage > 0) - int(advantage < 0)
    ratio = min(max(math.exp(sign * difference), 1 - clip), 1 + clip)
    return (1 - scale) + scale * ratio


def entropy_weights(teacher_entropies, entropy_beta=1.0):
    """SRPO: exp(-beta H_T) over its mean in all distilled tokens of the batch. Lists of lists."""
    raw = [[math.exp(-entropy_beta * h) for h in row] for row in teacher_entropies]
    tokens = [w for row in raw for w in row]
    mean = sum(tokens) / len(tokens) if tokens else 1.0
    return [[w / mean for w in row] for row in raw]


def future_credit(divergences, kind="future_mean"):
    """DistIL: C_t, mean or sum of the divergence over the tokens after t; 0 at the last."""
    credit = []
    for t in range(len(divergences)):
        later = divergences[t + 1 :]
        if not later:
            credit.append(0.0)
        else:
            credit.append(sum(later) / (len(later) if kind == "future_mean" else 1))
    return credit


def truncated_ratio(log_prob, old_log_prob, cap):
    """min(pi / pi_old, cap)."""
    return min(reference.importance_ratio(log_prob, old_log_prob), cap)


def information(samples):
    """PGPO: I, the mean of H_S - H_T over the tokens of taught samples, in nats."""
    gains = []
    for y in samples:
        for s, t in zip(y["student"], y["teacher"], strict=True):
            if y["taught"]:
                gains.append(entropy(softmax(s)) - entropy(softmax(t)))
    return sum(gains) / len(gains) if gains else 0.0


def update_scale(information, scale, largest, floor):
    """PGPO: kappa = max(min(exp(alpha I), rho_max), floor)."""
    return max(min(math.exp(scale * information), largest), floor)


def rhythm_weights(y, method):
    """M = 1 + beta g b with the gate and the bonus that `method` names."""
    own, guide = [softmax(z) for z in y["student"]], [softmax(z) for z in y["teacher"]]
    gate = [1.0] * len(own)
    if method["gate"] == "anchor":
        gate = reference.rhythm_gate(
            [entropy(p) for p in own], [entropy(q) for q in guide], window=method["window"]
        )
    weights = []
    for t, token in enumerate(y["tokens"]):
        l_s, l_t = math.log(own[t][token]), math.log(guide[t][token])
        bonus = method["max_bonus"] - 1
        if method["bonus"] == "exceedance":
            bonus = reference.rebellious_bonus(
                l_s,
                l_t,
                margin=method["margin"],
                bonus_temperature=method["bonus_temperature"],
                max_bonus=method["max_bonus"],
            )
        if method["bonus"] == "step" and reference.exceedance(l_s, l_t, method["margin"]) == 0:
            bonus = 0.0
        weights.append(1 + y["beta"] * gate[t] * bonus)
    return weights


def policy_weights(y, method):
    """M of every token of a sample."""
    if method["token_weight"] == "rhythm":
        return rhythm_weights(y, method)
    weights = []
    for t, token in enumerate(y["tokens"]):
        l_s = math.log(softmax(y["student"][t])[token])
        l_t = math.log(softmax(y["teacher"][t])[token])
        weight = evidence_weight(
            method["token_weight"],
            l_s,
            l_t,
            y["advantage"],
            method["reshape_scale"],
            method["reshape_clip"],
        )
        weights.append(1 + y["beta"] * (weight - 1))
    return weights


# ---- the objective ------------------------------------------------------------------------------


def normalisers(samples, flag, aggregation):
    """1 / N_i of each sample of an optimizer step, from the samples whose `flag` is true."""
    counted = [y for y in samples if y[flag]]
    out = []
    for y in samples:
        if not y[flag]:
            out.append(0.0)
        elif aggregation == "sequence_mean":
            out.append(1 / (len(counted) * len(y["tokens"])))
        elif aggregation == "token_mean":
            out.append(1 / sum(len(z["tokens"]) for z in counted))
        else:
            out.append(1 / len(samples))
    return out


def log_probs(logits, tokens):
    return [math.log(softmax(z)[token]) for z, token in zip(logits, tokens, strict=True)]


def divergences(y, method):
    """D of every token of a sample."""
    return [
        divergence(softmax(s), softmax(t), token, method)
        for s, t, token in zip(y["student"], y["teacher"], y["tokens"], strict=True)
    ]


def constants(samples, method, at_start=None):
    """What an optimizer step holds, per sample: coefficients, ratios' denominators, M, w, C.

    `at_start` are the same samples with the student of the start of the step; None on-policy.
    """
    start = at_start or samples
    policy = normalisers(samples, "policy_row", method["aggregation"])
    distill = normalisers(samples, "distill_row", method["aggregation"])
    trust = [[1.0] * len(y["tokens"]) for y in samples]
    if method["distill_token_weight"] == "teacher_entropy":
        entropies = [[entropy(softmax(z)) for z in y["teacher"]] if y["v"] else [] for y in start]
        trust = entropy_weights(entropies, method["entropy_beta"])
    held = []
    for i, y in enumerate(samples):
        own = log_probs(y["student"], y["tokens"])
        old = log_probs(start[i]["student"], y["tokens"])
        credit = [0.0] * len(own)
        if method["credit"] != "none":
            credit = future_credit(divergences(start[i], method), method["credit"])
        w = []
        for t in range(len(own)):
            ratio_cap = method["distill_ratio_cap"]
            moved = truncated_ratio(own[t], old[t], ratio_cap) if at_start and ratio_cap else 1.0
            w.append((trust[i][t] if trust[i] else 1.0) * moved)
        cap = method["sampler_correction_cap"]
        correction = [1.0] * len(own)
        if cap and y["fresh"]:
            correction = [
                truncated_ratio(o, s, cap) for o, s in zip(old, y["sampler"], strict=True)
            ]
        held.append(
            {
                "u": y["u"] * policy[i] * method["policy_scale"],
                "v": y["v"] * distill[i] * method["distill_scale"],
                "old": old,
                "own": own,
                "M": policy_weights(y, method),
                "w": w,
                "C": credit,
                "correction": correction,
            }
        )
    return held


def token_loss(y, t, student_logits, held, method, surrogate=True):
    """One token's part of the objective, as a function of the student's logits there.

    `surrogate`: the form with the right slope; False is the form with the right value, which
    differs for the sampled reverse KL only.
    """
    p, q, token = softmax(student_logits), softmax(y["teacher"][t]), y["tokens"][t]
    log_prob = math.log(p[token])
    ratio = reference.importance_ratio(log_prob, held["old"][t])

    def clipped(gain):
        return reference.clipped_surrogate(
            ratio, gain, method["clip_low"], method["clip_high"], method["dual_clip"]
        )

    total = -held["u"] * held["correction"][t] * held["M"][t] * clipped(y["advantage"])
    if not held["v"]:
        return total
    d = divergence(p, q, token, method)
    if surrogate and method["divergence"] == "sampled_reverse_kl":
        d = (held["own"][t] - math.log(q[token])) * log_prob
    credit = -clipped(-held["C"][t])
    return total + held["v"] * held["correction"][t] * (held["w"][t] * d + credit)


def loss(samples, held, method):
    """The objective's value."""
    return sum(
        token_loss(y, t, y["student"][t], h, method, surrogate=False)
        for y, h in zip(samples, held, strict=True)
        for t in range(len(y["tokens"]))
    )


def slopes(samples, held, method, step=1e-5):
    """The objective's slope along every logit of the student, by central differences."""
    out = []
    for y, h in zip(samples, held, strict=True):
        rows = []
        for t, logits in enumerate(y["student"]):
            row = []
            for v in range(len(logits)):
                up, down = list(logits), list(logits)
                up[v] += step
                down[v] -= step
                rise = token_loss(y, t, up, h, method) - token_loss(y, t, down, h, method)
                row.append(rise / (2 * step))
            rows.append(row)
        out.append(np.array(rows))
    return out
