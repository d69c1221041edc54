"""The configuration: every field once, with its meaning, unit, source and default.

`FIELDS` is the only list of settings. `default()` makes the `ConfigDict` from it, `validate()`
checks values against it, `describe()` prints it, and a resumed run asks it what may differ.

Values come from four places, the later one wins:

    default()  <  method (methods.py)  <  experiment file (configs/*.py)  <  --config.section.field=

A source says who chose the value: "paper" (the DRIFT paper, its section or equation), "reference"
(the public SDPO code that the paper builds on), "reading X" (the paper is silent; X numbers our
reading of it in the README's list) or "ours".
"""

import ast
import difflib
import importlib.util
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

Value = bool | int | float | str | tuple[int, ...]


class ConfigError(ValueError):
    """A setting that cannot work, in one line: what was got, what was expected, what to do."""


@dataclass(frozen=True)
class Field:
    """One setting.

    Attributes:
      name: dotted, `section.field`; also the command-line flag `--config.section.field`.
      default: its type is the field's type (bool, int, float, str or a tuple of int).
      doc: meaning and unit, in a sentence.
      source: who chose the default (see the module docstring).
      may_change: whether a resumed run may use another value than the run that it continues.
      choices: the allowed words; empty for any.
      at_least, at_most: inclusive range of a number, or of each member of a tuple.
      positive: whether the number must be larger than zero.
      may_be_empty: whether a tuple may have no member.
    """

    name: str
    default: Value
    doc: str
    source: str
    may_change: bool = False
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    positive: bool = False
    may_be_empty: bool = False


@dataclass(frozen=True)
class Change:
    """A field whose value differs between two configurations; None stands for an absent field."""

    name: str
    old: Value | None
    new: Value | None

    def __str__(self) -> str:
        return f"{self.name} {_show(self.old)} -> {_show(self.new)}"


# Tables: a field takes as few lines as it can.
# fmt: off
def _stage(
    name: str, title: str, *, policy: tuple[float, float], distill: tuple[float, float],
    sibling: str, use_difficulty: bool, use_rhythm: bool, source: str,
) -> tuple[Field, ...]:
    """The fields of a curriculum stage; `policy` and `distill` are weights (correct, wrong)."""
    return (
        Field(f"{name}.policy_correct", policy[0],
              f"{title}: weight of the policy-gradient term for correct samples (Eq. 4).",
              source, at_least=0),
        Field(f"{name}.policy_wrong", policy[1],
              f"{title}: the same for wrong samples; 1 for both is plain GRPO.",
              source, at_least=0),
        Field(f"{name}.distill_correct", distill[0],
              f"{title}: weight of the distillation term for correct samples (Eqs. 4-5).",
              source, at_least=0),
        Field(f"{name}.distill_wrong", distill[1],
              f"{title}: the same for wrong samples; 1 for both is plain SDPO.",
              source, at_least=0),
        Field(f"{name}.sibling", sibling,
              f"{title}: which success of the group teaches: the largest reward within "
              "teacher.reward_tolerance and then the highest entropy; the largest reward and then "
              "the shortest; or the first success.",
              source, choices=("highest_entropy", "shortest", "first")),
        Field(f"{name}.use_difficulty", use_difficulty,
              f"{title}: multiply the policy term of correct samples by gamma, and the "
              "distillation of wrong ones by the difficulty.*_distill_weight; False is 1 for both.",
              source),
        Field(f"{name}.use_rhythm", use_rhythm,
              f"{title}: weigh the tokens of the policy term in the rows that "
              "objective.weighted_rows names (Eq. 16).",
              "paper 3.3, reading R17"),
        Field(f"{name}.no_teacher", "mask",
              f"{title}: a wrong sample without a teacher keeps policy_wrong (mask), or gets the "
              "policy term with weight 1 (policy); unweighted also leaves out gamma where a "
              "correct one has none.",
              "reading L1", choices=("mask", "policy", "unweighted")),
    )


FIELDS: tuple[Field, ...] = (
    # ---- run
    Field("seed", 0,
          "Seed of everything random: data order, sampling, buffer draws, random weights.",
          "ours", at_least=0, at_most=2**32 - 1),
    Field("task", "toolcalls",
          "Task: problems, prompt and grader. toolcalls, toolcalls_graded, toolsteps and lookup "
          "are generated; others are files. With data.rewards any name: that of the folder with "
          "your files.", "ours"),
    Field("method", "drift",
          "Name of the method whose values were applied; for the reader, no code looks at it.",
          "ours", may_change=True),
    # ---- data
    Field("data.path", "data", "Folder with the task files; unused by generated tasks.",
          "ours", may_change=True),
    Field("data.world_seed", 0,
          "Seed of the generated world (functions, hidden formats, problems).", "ours", at_least=0),
    Field("data.instructions", False,
          "toolcalls: a system turn says what a response looks like, for a model that has had no "
          "warm start on the task; unused by other tasks.",
          "ours"),
    Field("data.validation_fraction", 0.0,
          "Share of the training problems held back for validation, chosen by a hash of the id "
          "(toolcalls has such problems anyway). Above 0, evaluations ask them too, and the best "
          "step is chosen there; 0 is the paper's protocol.", "ours", at_least=0, at_most=0.9),
    Field("data.max_prompt_tokens", 2048,
          "Longer prompts (after the chat template, in tokens) are dropped and counted.",
          "reference, reading S7", at_least=1),
    Field("data.rewards", "",
          "Your reward function, (response, answer) -> number or Score: file.py:function or "
          "module:function, called in a pool of processes. Empty is the task's own grader.",
          "ours"),
    Field("data.reward_workers", 4, "Processes that call data.rewards.",
          "ours", may_change=True, at_least=1),
    Field("data.reward_timeout", 10.0,
          "Seconds that a call of data.rewards may take; then it is killed and has reward 0.",
          "ours", may_change=True, positive=True),
    Field("data.thinking", False,
          "Let the chat template open a thinking block (Qwen3's enable_thinking).",
          "reference, reading S7"),
    # ---- model
    Field("model.path", "quickstart_base",
          "Hugging Face folder with weights and tokenizer; quickstart_base is the small base "
          "model in the package.",
          "ours"),
    Field("model.init", "checkpoint",
          "Weights from model.path, or random of the sizes in model.preset. The tokenizer is that "
          "of model.path; a random model of a generated task needs no path.",
          "ours", choices=("checkpoint", "random")),
    Field("model.preset.hidden_size", 64, "Random model: width.", "ours", at_least=2),
    Field("model.preset.num_layers", 3, "Random model: decoder layers.", "ours", at_least=1),
    Field("model.preset.num_heads", 2, "Random model: query heads.", "ours", at_least=1),
    Field("model.preset.num_kv_heads", 1, "Random model: key and value heads; divides num_heads.",
          "ours", at_least=1),
    Field("model.preset.head_dim", 32, "Random model: size of a head.", "ours", at_least=2),
    Field("model.preset.intermediate_size", 192,
          "Random model: width of the gated feed-forward layer.", "ours", at_least=1),
    Field("model.preset.rope_theta", 10000.0, "Random model: base of the rotary position angles.",
          "ours", positive=True),
    Field("model.preset.tie_embeddings", True,
          "Random model: the output head is the embedding table.", "ours"),
    Field("model.compute_dtype", "bfloat16",
          "Type of activations and matrix products; parameters, optimizer and softmax stay "
          "float32.",
          "reference", choices=("bfloat16", "float32")),
    Field("model.remat", "none",
          "Keep all activations of the forward pass, or recompute each layer in the backward pass "
          "(full).",
          "ours", may_change=True, choices=("none", "full")),
    # ---- rollouts
    Field("rollout.problems_per_step", 32, "Problems drawn per step.",
          "reference, readings L6 and S5", at_least=1),
    Field("rollout.group_size", 8, "Rollouts per problem (G, n of Eq. 7).",
          "paper 3.2, reading S5", at_least=1),
    Field("rollout.max_new_tokens", 8192, "Longest response in tokens, stop token included.",
          "reference, reading S7", at_least=1),
    Field("rollout.temperature", 1.0, "Sampling temperature.",
          "reference, reading R3", positive=True),
    Field("rollout.top_p", 1.0,
          "Nucleus sampling: smallest set of tokens with this mass; 1 is off.",
          "reference", at_most=1, positive=True),
    Field("rollout.top_k", 0, "Sample among the k likeliest tokens; 0 is off.",
          "reference", at_least=0),
    Field("rollout.segment_steps", 128,
          "Most decoding steps between two looks at which responses are finished.",
          "ours", may_change=True, at_least=1),
    Field("rollout.max_rows", 0,
          "Most rows decoded at once, in training and in evaluation; more responses wait for a "
          "free one. 0 is all rows of a step. No effect on the result but for rounding.",
          "ours", may_change=True, at_least=0),
    Field("rollout.row_buckets", (16, 64),
          "Smaller batches (rows), ascending, that the last responses move to as others finish; "
          "() is none.",
          "ours", may_change=True, at_least=1, may_be_empty=True),
    Field("rollout.cache_buckets", (1024, 2048, 4096),
          "Lengths (tokens), ascending, that the caches of keys and values have before their full "
          "one; () is none.",
          "ours", may_change=True, at_least=1, may_be_empty=True),
    Field("rollout.precompile", True,
          "Compile all shapes of the sampler before the first step, or (False) each when it is "
          "first met.",
          "ours", may_change=True),
    Field("rollout.prompt_buckets", (512, 1024, 2048),
          "Prompts are padded to the smallest of these lengths (tokens) that holds the batch's "
          "longest.",
          "ours", at_least=1),
    Field("rollout.response_buckets", (1024, 2048, 4096, 8192), "The same for responses.",
          "ours", at_least=1),
    # ---- difficulty routing
    Field("difficulty.estimate", "smoothed",
          "Pass rate of a problem over its visits: smoothed (Eq. 8), or decayed counts of "
          "successes and failures behind a Beta prior (beta).",
          "paper Eq. 8, reading D4", choices=("smoothed", "beta")),
    Field("difficulty.pass_rate_decay", 0.5,
          "Weight of the past in the smoothed pass rate, per visit (alpha of Eq. 8).",
          "paper Eq. 8, reading D2", at_least=0, at_most=1),
    Field("difficulty.count_decay", 0.85,
          "estimate=beta: what a training step leaves of a count since the last visit.",
          "ours (the authors' release)", at_least=0, at_most=1),
    Field("difficulty.prior_count", 1.0,
          "estimate=beta: pseudo-counts of a success and of a failure each.",
          "ours (the authors' release)", at_least=0),
    Field("difficulty.shrink_count", 8.0,
          "estimate=beta: rollouts at which half of the weight is still on 1/2; 0 is off.",
          "ours (the authors' release)", at_least=0),
    Field("difficulty.reset_every", 0,
          "Steps of stage 2 between two resets of all pass rates; 0 is never.",
          "reading D11", at_least=0),
    Field("difficulty.bins", "strict",
          "A problem lies in one bin (strict), or in all three by logistic shares (soft), and its "
          "weights and beta are mixed by share.",
          "paper 3.2, reading D8", choices=("strict", "soft")),
    Field("difficulty.softness", 0.08, "bins=soft: width of the edges, in units of pass rate.",
          "ours (the authors' release)", positive=True),
    Field("difficulty.easy_above", 0.8, "Easy: pass rate strictly above (r_easy).",
          "paper 3.2, reading D7", at_least=0, at_most=1),
    Field("difficulty.hard_below", 0.2, "Hard: pass rate strictly below (r_hard).",
          "paper 3.2, reading D7", at_least=0, at_most=1),
    Field("difficulty.easy_weight", 0.5, "gamma of easy problems.", "paper 3.2", at_least=0),
    Field("difficulty.medium_weight", 1.0, "gamma of medium problems.", "paper 3.2", at_least=0),
    Field("difficulty.hard_weight", 0.0, "gamma of hard problems.", "paper 3.2", at_least=0),
    Field("difficulty.easy_distill_weight", 1.0,
          "Where use_difficulty: weight of the distillation of wrong samples of easy problems.",
          "paper Eq. 4, reading L12", at_least=0),
    Field("difficulty.medium_distill_weight", 1.0, "The same of medium problems.",
          "paper Eq. 4, reading L12", at_least=0),
    Field("difficulty.hard_distill_weight", 1.0, "The same of hard problems.",
          "paper Eq. 4, reading L12", at_least=0),
    Field("difficulty.question_weight", "none",
          "What multiplies the distillation of all samples of a problem: nothing, or "
          "[p (1 - p)]^question_exponent over its mean among the step's mixed groups, with p of "
          "this group (bernoulli); groups all right or all wrong then get 0.",
          "ours (SC-SDPO, 2605.27765)", choices=("none", "bernoulli")),
    Field("difficulty.question_exponent", 0.5,
          "Exponent of question_weight=bernoulli; 0 weighs all mixed groups alike.",
          "ours (SC-SDPO, 2605.27765)", at_least=0),
    Field("difficulty.success_threshold", 0.5,
          "A sample is correct when its reward is at least this (theta_r): routing, siblings, "
          "buffer.",
          "reference, readings T1 and T2"),
    # ---- self-teacher
    Field("teacher.update_rule", "ema",
          "Teacher weights: moving average of the student; the initial model for ever (frozen); "
          "the initial model, with teacher.rate of the current student's logits (trust_region); a "
          "copy every copy_every steps (snapshot); or a copy when rewards have risen and lengths "
          "are stable (gated_copy).",
          "reference, reading T11",
          choices=("ema", "frozen", "trust_region", "snapshot", "gated_copy")),
    Field("teacher.rate", 0.05,
          "Share of the student mixed into the moving average per step; 1 is the current student.",
          "reference, reading T11", at_least=0, at_most=1),
    Field("teacher.copy_every", 10, "update_rule=snapshot: steps between two copies.",
          "ours (as RLCSD, 2606.11709)", at_least=1),
    Field("teacher.check_every", 5,
          "update_rule=gated_copy: steps between two looks at its conditions.",
          "ours (as CGTR, 2606.03532)", at_least=1),
    Field("teacher.min_steps", 30, "update_rule=gated_copy: fewest steps between two copies.",
          "ours (as CGTR, 2606.03532)", at_least=1),
    Field("teacher.window", 5,
          "update_rule=gated_copy: last steps whose rewards and lengths are read.",
          "ours (as CGTR, 2606.03532)", at_least=1),
    Field("teacher.reward_gain", 0.05,
          "update_rule=gated_copy: by how much the window's mean reward must exceed that of the "
          "last copy.",
          "ours (as CGTR, 2606.03532)"),
    Field("teacher.length_ratio", 3.2,
          "update_rule=gated_copy: largest allowed ratio of the window's longest response to its "
          "mean length.",
          "ours (as CGTR, 2606.03532)", positive=True),
    Field("teacher.feedback", "none",
          "Show the teacher what the grader said about the sample: never, to samples without a "
          "solution to show, or always.",
          "reference, reading T12", choices=("none", "without_solution", "always")),
    Field("teacher.reward_tolerance", 0.1,
          "Width of the reward window below the best, for highest_entropy (delta).",
          "paper 3.1, reading T3", at_least=0),
    Field("teacher.max_prompt_tokens", 10240,
          "Longest teacher prompt in tokens; longer demonstrations lose their beginning.",
          "reference, reading T13", at_least=1),
    Field("teacher.prompt_buckets", (1024, 2048, 4096, 10240),
          "Padded lengths of teacher prompts, as rollout.prompt_buckets.", "ours", at_least=1),
    Field("teacher.remove_thinking", True, "Delete thinking blocks from a demonstration.",
          "reference, reading T13"),
    # ---- curriculum
    Field("curriculum.warmup_steps", 50, "Steps of stage 1; 0 starts in stage 2.",
          "reading S1", at_least=0),
    Field("curriculum.warmup_epochs", 0.0,
          "Length of stage 1 in epochs; wins over warmup_steps when above 0.",
          "reading S1", at_least=0),
    # ---- the two stages; the same fields
    *_stage("warmup", "Stage 1", policy=(0.0, 0.0), distill=(1.0, 1.0), sibling="highest_entropy",
            use_difficulty=False, use_rhythm=False, source="paper 3.1, readings T9 and T10"),
    *_stage("mixed", "Stage 2", policy=(1.0, 0.0), distill=(0.0, 1.0), sibling="shortest",
            use_difficulty=True, use_rhythm=True, source="paper Eq. 4"),
    # ---- success buffer
    Field("buffer.capacity", 3,
          "Successful responses kept per problem (b of Eq. 17); 0 switches the buffer off.",
          "paper 3.4, reading B1", at_least=0),
    Field("buffer.fill_epochs", 1,
          "Epochs that only fill the buffer; used when epoch > fill_epochs (k of Eq. 18).",
          "paper 3.4, readings B6 and B7", at_least=0),
    Field("buffer.on_tie", "keep",
          "Full buffer, equal reward: keep the old entry (Eq. 22), or prefer the newest or the "
          "shortest.",
          "paper Eq. 22, reading B2", choices=("keep", "newest", "shortest")),
    Field("buffer.use_in_warmup", True,
          "Stage 1 may read the buffer too, once epoch > fill_epochs.", "reading B8"),
    Field("buffer.fill_steps", 0,
          "Steps that only fill the buffer, beside fill_epochs: the later of the two counts.",
          "ours (the authors' release)", at_least=0),
    Field("buffer.draw", "uniform",
          "Which entry is read: each with the same chance (Eq. 20), or the one with the highest "
          "reward and then the newest (top).",
          "paper Eq. 20, reading B5", choices=("uniform", "top")),
    Field("buffer.max_problems", 0,
          "Problems with entries; beyond, the one whose best entry ranks lowest by reward, then "
          "step, is forgotten. 0 keeps all.",
          "reading B10", at_least=0),
    Field("buffer.teaches", True, "A group without success is taught from the buffer (Eq. 19).",
          "paper Eq. 19"),
    Field("buffer.group_members", 0,
          "Stored successes that join each group in the policy gradient, as RLEP does; 0 is none.",
          "ours (RLEP, 2507.07451)", at_least=0),
    Field("buffer.group_success", "threshold",
          "When a group counts as having a success of its own, so that the buffer is not read "
          "(Eq. 19): a reward of at least success_threshold, or any reward above 0 (positive).",
          "reading T2", choices=("threshold", "positive")),
    # ---- objective
    Field("objective.divergence", "jsd",
          "Divergence between student and teacher, in nats; sampled_reverse_kl reads the sampled "
          "token alone.",
          "paper Eq. 3",
          choices=("jsd", "forward_kl", "reverse_kl", "forward_ce", "sampled_reverse_kl")),
    Field("objective.alpha", 0.5,
          "Weight of the teacher in the mixture of the divergence; 0.5 is Eq. 3.",
          "paper Eq. 3", at_least=0, at_most=1),
    Field("objective.top_k", 0,
          "Divergence over the k likeliest tokens; 0 is the full vocabulary.",
          "paper Eq. 3, reading L7", at_least=0),
    Field("objective.support", "student", "Whose k likeliest tokens top_k takes.",
          "reference, reading L7", choices=("student", "teacher")),
    Field("objective.rest", "tail",
          "What happens to the mass outside top_k: one more bin (tail), scale the rest to 1 "
          "(renormalise), or leave it out (drop).",
          "reference, reading L7", choices=("tail", "renormalise", "drop")),
    Field("objective.pointwise_cap", 0.0,
          "Largest part of one vocabulary entry in a divergence, in nats (OPSD, 2601.18734); 0 is "
          "off.",
          "ours", at_least=0),
    Field("objective.aggregation", "sequence_mean",
          "Tokens to loss: mean over samples of token means, mean over all tokens, or token sums "
          "(Eqs. 5-6).",
          "reference, reading L2", choices=("sequence_mean", "token_mean", "token_sum")),
    Field("objective.clip_low", 0.2, "Ratio is clipped below 1 - clip_low (Eqs. 1, 6).",
          "reference, reading L4", at_least=0, at_most=1),
    Field("objective.clip_high", 0.28, "Ratio is clipped above 1 + clip_high.",
          "reference, reading L4", at_least=0),
    Field("objective.dual_clip", 3.0,
          "Bound of the loss, in units of -A, for negative advantages; 0 is off.",
          "reference, reading L4", at_least=0),
    Field("objective.scale_by_std", False, "Divide advantages by the group's standard deviation.",
          "reference, reading L5"),
    Field("objective.advantage_over", "group",
          "Advantages are relative to the whole group (paper 3.1), or to its successes alone; "
          "failures then have 0.",
          "paper 3.1", choices=("group", "successes")),
    Field("objective.advantage_weight", "none",
          "Advantages as they are, or weighed by the rareness of their outcome (GRPO-LEAD).",
          "ours", choices=("none", "lead")),
    Field("objective.normaliser_rows", "valid",
          "Rows that aggregation counts: all (valid); of the distillation term those with a "
          "teacher (with_teacher); or, in both terms, those that have either (routed).",
          "reference, reading L2", choices=("valid", "with_teacher", "routed")),
    Field("objective.weighted_rows", "medium_correct",
          "Rows with a teacher whose tokens the policy term weighs, where use_rhythm: correct ones "
          "of medium problems (beta of Eq. 16), correct ones, or all.",
          "paper Eq. 16, reading D9", choices=("medium_correct", "correct", "all")),
    Field("objective.distill_scale", 1.0, "Factor of the whole distillation branch.",
          "paper Eq. 4, reading L3", at_least=0),
    Field("objective.policy_scale", 1.0, "Factor of the whole policy-gradient branch.",
          "paper Eq. 4, reading L3", at_least=0),
    Field("objective.token_weight", "rhythm",
          "What weighs the tokens of the policy term in the rows that have token weights: M of "
          "Eq. 16, or the advantage reshaped towards the teacher's view (rlsd, 2604.03128) or "
          "against it (rlrt, 2605.10781).",
          "paper Eq. 16", choices=("rhythm", "rlsd", "rlrt")),
    Field("objective.reshape_scale", 0.5,
          "lambda of rlsd and rlrt: weight (1 - lambda) + lambda x clipped ratio.",
          "ours (as RLSD, 2604.03128)", at_least=0, at_most=1),
    Field("objective.reshape_decay_steps", 0,
          "Steps in which lambda falls linearly to 0; 0 keeps it constant.", "ours", at_least=0),
    Field("objective.reshape_clip", 0.2,
          "That ratio is clipped to 1 - reshape_clip and 1 + reshape_clip.",
          "ours (as RLSD, 2604.03128)", at_least=0),
    Field("objective.distill_token_weight", "none",
          "What weighs the tokens of the distillation term: nothing, or exp(-entropy_beta x "
          "teacher's entropy) over its mean in all distilled tokens of the mini-batch "
          "(teacher_entropy, SRPO, 2604.02288).",
          "paper Eq. 5", choices=("none", "teacher_entropy")),
    Field("objective.entropy_beta", 1.0, "beta of teacher_entropy, per nat.",
          "ours (as SRPO, 2604.02288)", at_least=0),
    Field("objective.credit", "none",
          "Score-function credit of a distilled token for the divergence of the later ones: none, "
          "their mean (future_mean, DistIL, 2606.05152) or their sum (future_sum, the exact "
          "gradient).",
          "paper Eq. 5", choices=("none", "future_mean", "future_sum")),
    Field("objective.distill_ratio_cap", 2.0,
          "Largest ratio to the policy that sampled by which a divergence is weighed; acts with "
          "mini_batches above 1 only; 0 is off.",
          "reference, reading L8", at_least=0),
    Field("objective.sampler_correction_cap", 0.0,
          "Largest importance weight of trainer over sampler, per token of both terms; 0 is off.",
          "reference, reading L9", at_least=0),
    # ---- rhythm gate and rebellious bonus
    Field("rhythm.gate", "anchor",
          "Gate of Eq. 16: that of Eqs. 11-15, or open at every token, M = 1 + beta x bonus.",
          "paper Eq. 15", choices=("anchor", "open")),
    Field("rhythm.bonus", "exceedance",
          "Bonus of Eq. 16: that of Eq. 10; max_bonus - 1 where Eq. 9 is above 0 (step: screened, "
          "not graded); or max_bonus - 1 at every token (full), M = 1 + beta x gate x (max_bonus "
          "- 1).",
          "paper Eq. 10", choices=("exceedance", "step", "full")),
    Field("rhythm.window", 8,
          "Tokens on each side of a position in the entropy drop (W of Eq. 11).",
          "readings R5 and R6", at_least=1),
    Field("rhythm.gate_sharpness", 1.0, "alpha_anc of Eq. 13.",
          "paper Eq. 13, reading R8", positive=True),
    Field("rhythm.structure_scale", 1.0,
          "lambda_struct of the multiplier before Eq. 14; 0 closes the gate.",
          "paper Eq. 14, reading R9", at_least=0),
    Field("rhythm.min_multiplier", 0.5,
          "m_min of Eq. 14; without effect, since Eq. 15 clips below 1.",
          "paper Eq. 14, reading R10", at_least=0),
    Field("rhythm.max_multiplier", 2.0, "m_max of Eqs. 14-15; above 1.",
          "paper Eq. 15, reading R10"),
    Field("rhythm.margin", 0.2, "Nats by which the student must exceed the teacher (mu of Eq. 9).",
          "paper Eq. 9, reading R11", at_least=0),
    Field("rhythm.bonus_temperature", 1.0,
          "Growth of the bonus with the exceedance (tau of Eq. 10).",
          "paper Eq. 10, reading R11", positive=True),
    Field("rhythm.max_bonus", 2.0,
          "Largest token weight (B_max of Eq. 10); 1 switches the bonus off.",
          "paper Eq. 10, reading R11", at_least=1),
    Field("rhythm.every_sign", False,
          "Weigh tokens whatever the sign of the advantage; False: only where it is positive.",
          "reading L11"),
    # ---- optimizer, and how it is computed
    Field("optimizer.learning_rate", 5e-06,
          "Learning rate of DRIFT; in use is learning_rate x learning_rate_factor.",
          "reading S3", at_least=0),
    Field("optimizer.learning_rate_factor", 1.0,
          "The method's learning rate relative to DRIFT's; set by the method.", "ours", at_least=0),
    Field("optimizer.warmup_steps", 10, "Steps of linear learning-rate warm-up, then constant.",
          "reference, reading S4", at_least=0),
    Field("optimizer.zero_first_step", False,
          "Start the warm-up at 0 as the reference does; False starts at 1/warmup_steps.",
          "reading S12"),
    Field("optimizer.b1", 0.9, "Adam's first decay.",
          "reference, reading S4", at_least=0, at_most=1),
    Field("optimizer.b2", 0.999, "Adam's second decay.",
          "reference, reading S4", at_least=0, at_most=1),
    Field("optimizer.eps", 1e-08, "Adam's epsilon.", "reference, reading S4", positive=True),
    Field("optimizer.weight_decay", 0.01, "Decoupled weight decay of all parameters.",
          "reference, reading S4", at_least=0),
    Field("optimizer.clip_norm", 1.0, "Largest global gradient norm.",
          "reference, reading S4", positive=True),
    Field("optimizer.mini_batches", 1,
          "Optimizer steps per training step, each on a consecutive slice of its problems; all "
          "compare with the policy at the start of the step. 1 is on-policy.",
          "reference, reading L6", at_least=1),
    Field("optimizer.information_scale", 0.0,
          "alpha of PGPO (2606.03620): the update is multiplied by exp(alpha x I), I the mean "
          "student less teacher entropy in nats; 0 is off.",
          "ours", at_least=0),
    Field("optimizer.information_max", 2.0, "Largest such factor (rho_max, which the paper omits).",
          "ours", positive=True),
    Field("optimizer.information_floor", 0.0,
          "Smallest such factor; 0 is the formula as printed, 1 what PGPO's text claims.",
          "ours", at_least=0),
    Field("compute.micro_batch", 0,
          "Rows (samples) per gradient accumulation step; 0 is all rows of a mini-batch. No effect "
          "on the result.",
          "ours", may_change=True, at_least=0),
    Field("compute.vocab_chunk", 1024, "Tokens whose logits exist at the same time.",
          "ours", may_change=True, at_least=1),
    Field("compute.longest_first", True,
          "Where buckets vary: compile the longest update before the first step, and take its "
          "memory once, so that a lack of it shows at once.",
          "ours", may_change=True),
    # ---- run, evaluation, files
    Field("train.steps", 400, "Steps of the run.",
          "paper 4.1, reading S6", may_change=True, at_least=0),
    Field("train.max_skipped", 5, "So many non-finite steps in a row stop the run.",
          "ours", may_change=True, at_least=1),
    Field("evaluation.every", 5, "Steps between evaluations; 0: only at the start and the end.",
          "reference, reading S9", may_change=True, at_least=0),
    Field("evaluation.at_start", True, "Evaluate before the first step.", "ours", may_change=True),
    Field("evaluation.split", "test", "Problems that are evaluated.",
          "reference", may_change=True, choices=("test", "validation", "train")),
    Field("evaluation.max_problems", 0,
          "Evaluate only so many problems, chosen by a hash of the id; 0 is all.",
          "ours", may_change=True, at_least=0),
    Field("evaluation.problems_per_batch", 32,
          "Problems between two appends to the file that the evaluate command writes.",
          "ours", may_change=True, at_least=1),
    Field("evaluation.samples", 16, "Samples per problem (k of mean@k).",
          "reference, reading S9", may_change=True, at_least=1),
    Field("evaluation.validation_samples", 4,
          "Samples per validation problem, where data.validation_fraction is above 0.",
          "ours", may_change=True, at_least=1),
    Field("evaluation.temperature", 0.6, "Sampling temperature of evaluations; 0 is greedy.",
          "reference, reading S9", may_change=True, at_least=0),
    Field("evaluation.top_p", 0.95, "Nucleus mass of evaluations.",
          "reference, reading S9", may_change=True, at_most=1, positive=True),
    Field("evaluation.top_k", 0, "Likeliest tokens in evaluations; 0 is off.",
          "reference", may_change=True, at_least=0),
    Field("evaluation.teacher_samples", 4,
          "Samples per problem of the student with sibling or buffer context "
          "(eval/teacher_mean@k); 0 is off.",
          "ours", may_change=True, at_least=0),
    Field("checkpoint.every", 20,
          "Steps between checkpoints; one more at the end. 0: only at the end.",
          "ours", may_change=True, at_least=0),
    Field("checkpoint.keep_last", 2, "Newest checkpoints kept.",
          "ours", may_change=True, at_least=1),
    Field("checkpoint.keep_best", True,
          "Keep the checkpoint with the best evaluation too: on validation where "
          "data.validation_fraction is above 0 (and save it as soon as it comes), else on "
          "evaluation.split.",
          "ours", may_change=True),
    Field("logging.every", 1, "Steps between two lines of the plain progress display.",
          "ours", may_change=True, at_least=1),
    Field("logging.samples_every", 10, "Steps between two sample files; 0 is none.",
          "ours", may_change=True, at_least=0),
    Field("logging.samples_token_detail_fraction", 0.1,
          "Share of the samples written with per-token entropies, gates and weights.",
          "ours", may_change=True, at_least=0, at_most=1),
    Field("logging.tensorboard", True, "Write metrics to TensorBoard as well.",
          "ours", may_change=True),
    # ---- devices
    Field("mesh.data", 1, "Devices along the data axis.", "ours", may_change=True, at_least=1),
    Field("mesh.fsdp", -1,
          "Devices over which parameters and batch are sharded; -1 takes all that remain.",
          "ours", may_change=True, at_least=-1),
    Field("mesh.tensor", 1, "Devices along the tensor axis.", "ours", may_change=True, at_least=1),
    # ---- supervised warm start (its own command)
    Field("warm_start.steps", 3000, "Optimizer steps.", "ours", may_change=True, at_least=1),
    Field("warm_start.plain_batch", 64, "Demonstrations in a batch without reference.",
          "ours", may_change=True, at_least=1),
    Field("warm_start.reference_batch", 32,
          "Demonstrations in a batch with a reference solution in the prompt.",
          "ours", may_change=True, at_least=1),
    Field("warm_start.reference_fraction", 0.6,
          "Share of the batches with a reference; they teach the model to read a sibling.",
          "ours", may_change=True, at_least=0, at_most=1),
    Field("warm_start.learning_rate", 0.003, "Peak learning rate.",
          "ours", may_change=True, at_least=0),
    Field("warm_start.warmup_steps", 100, "Steps of linear warm-up.",
          "ours", may_change=True, at_least=0),
    Field("warm_start.final_fraction", 0.1, "Cosine decay ends at this share of the peak.",
          "ours", may_change=True, at_least=0, at_most=1),
    Field("warm_start.weight_decay", 0.01, "Decoupled weight decay.",
          "ours", may_change=True, at_least=0),
    Field("warm_start.clip_norm", 1.0, "Largest global gradient norm.",
          "ours", may_change=True, positive=True),
)
# fmt: on

_BY_NAME: dict[str, Field] = {field.name: field for field in FIELDS}


# ---- making and changing a configuration --------------------------------------------------------


def default() -> ConfigDict:
    """All fields at their defaults: the paper's setting, DRIFT with our readings."""
    config = ConfigDict()
    for field in FIELDS:
        *sections, key = field.name.split(".")
        target = config
        for section in sections:
            if section not in target:
                target[section] = ConfigDict()
            target = target[section]
        target[key] = field.default
    return config


def assign(config: ConfigDict, values: Mapping[str, Value]) -> ConfigDict:
    """Sets dotted names in place and returns the same `config`.

    Raises:
      ConfigError: for a name that is no field (names the nearest), or a value of another type.
    """
    for name, value in values.items():
        if name not in _BY_NAME:
            raise ConfigError(unknown_field_message(name))
        section, key = _locate(config, name)
        section[key] = _converted(_BY_NAME[name], value)
    return config


def locked(config: ConfigDict) -> ConfigDict:
    """Locks `config`, so that a misspelt attribute raises instead of making a new field."""
    config.lock()
    return config


def parse_arg(arg: str, defaults: Mapping[str, Value]) -> dict[str, Any]:
    """Reads the text after the colon of `--config=configs/x.py:task=biology,runlocal`.

    Args:
      arg: `key=value` items between commas; a bare `key` means True. Empty for none.
      defaults: every known key with its default, whose type is the key's type.

    Returns:
      All keys with their values.

    Raises:
      ConfigError: for an unknown key (names the known ones) or an unreadable value.
    """
    values: dict[str, Any] = dict(defaults)
    for item in (part.strip() for part in arg.split(",")):
        if not item:
            continue
        key, separator, text = item.partition("=")
        if key not in defaults:
            known = ", ".join(defaults)
            raise ConfigError(f"unknown config argument '{key}'; the known ones are: {known}")
        if separator:
            values[key] = _parsed(f"config argument '{key}'", text, type(defaults[key]))
        elif isinstance(defaults[key], bool):
            values[key] = True
        else:
            raise ConfigError(f"config argument '{key}' has no value; write {key}={defaults[key]}")
    return values


def load(spec: str) -> ConfigDict:
    """Runs `get_config(arg)` of the config file "path.py" or "path.py:arg".

    Raises:
      ConfigError: when there is no such file, or when it refuses the argument.
    """
    path_text, _, arg = spec.partition(":")
    path = Path(path_text)
    if path.suffix != ".py" or not path.is_file():
        raise ConfigError(
            f"config file '{path_text}' is not a Python file that exists; give a path such as"
            " configs/quickstart.py"
        )
    module_spec = importlib.util.spec_from_file_location(f"drift_jax_config_{path.stem}", path)
    assert module_spec is not None and module_spec.loader is not None  # holds for any .py path
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ConfigError(f"config file '{path_text}' has no get_config(arg); define one")
    config: ConfigDict = module.get_config(arg)
    return config


def check_command_line(arguments: Sequence[str]) -> None:
    """Checks `--config` and `--config.section.field=value` before absl reads them.

    absl answers a misspelt field with a traceback and a refused config argument with a page of
    text. This gives one line instead.

    Args:
      arguments: of the command line, without the program's name.

    Raises:
      ConfigError: for an unknown field, an unreadable value, or a config file that does not load.
    """
    spec: str | None = None
    for position, argument in enumerate(arguments):
        if not argument.startswith("-"):
            continue
        flag, separator, text = argument.lstrip("-").partition("=")
        if flag == "config" and spec is None:
            spec = text if separator else "".join(arguments[position + 1 : position + 2])
            load(spec)
        section, _, name = flag.partition(".")
        if section not in ("config", "noconfig") or not name:
            continue
        if spec is None:
            raise ConfigError(f"--{flag} stands before --config=FILE; put --config=FILE first")
        if name not in _BY_NAME:
            raise ConfigError(unknown_field_message(name))
        if separator:
            _parsed(name, text, type(_BY_NAME[name].default))


def override(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """Sets what `--config.section.field=value` arguments say, as the command line would.

    Raises:
      ConfigError: for an argument of another form, an unknown field or an unreadable value.
    """
    for argument in arguments:
        flag, separator, text = argument.partition("=")
        name = flag.removeprefix("--config.")
        if not separator or name == flag:
            raise ConfigError(f"{argument!r} is not --config.section.field=value; write it so")
        if name not in _BY_NAME:
            raise ConfigError(unknown_field_message(name))
        assign(config, {name: _parsed(name, text, type(_BY_NAME[name].default))})
    return config


def learning_rate(config: ConfigDict) -> float:
    """The learning rate in use: the experiment's times the method's factor."""
    return float(config.optimizer.learning_rate * config.optimizer.learning_rate_factor)


def warmup_length(config: ConfigDict, steps_per_epoch: int) -> int:
    """Steps of stage 1: `warmup_epochs` (rounded up to a step) if above 0, else `warmup_steps`."""
    if config.curriculum.warmup_epochs > 0:
        return math.ceil(config.curriculum.warmup_epochs * steps_per_epoch)
    return int(config.curriculum.warmup_steps)


def mesh_shape(config: ConfigDict, device_count: int) -> tuple[int, int, int]:
    """Sizes of the axes (data, fsdp, tensor); fsdp = -1 becomes the devices that remain.

    Raises:
      ConfigError: when the sizes do not multiply to `device_count`.
    """
    data, fsdp, tensor = config.mesh.data, config.mesh.fsdp, config.mesh.tensor
    if fsdp == -1 and device_count % (data * tensor) == 0:
        return data, device_count // (data * tensor), tensor
    if fsdp == -1:
        raise ConfigError(
            f"mesh.data {data} x mesh.tensor {tensor} = {data * tensor} does not divide"
            f" {device_count} devices; use sizes whose product divides {device_count}"
        )
    if data * fsdp * tensor != device_count:
        raise ConfigError(
            f"mesh.data {data} x mesh.fsdp {fsdp} x mesh.tensor {tensor} = {data * fsdp * tensor}"
            f" is not the number of devices, {device_count}; use mesh.fsdp=-1 to take all"
        )
    return data, fsdp, tensor


def needs_teacher(config: ConfigDict) -> bool:
    """Whether some stage distils or uses the rhythm gate, so that teacher weights must exist."""
    return any(
        stage.distill_correct > 0 or stage.distill_wrong > 0 or stage.use_rhythm
        for stage in (config.warmup, config.mixed)
    )


# ---- checking -----------------------------------------------------------------------------------


def validate(
    config: ConfigDict, *, device_count: int = 1, problem_count: int | None = None
) -> None:
    """Finds settings that cannot work, before anything is compiled.

    Args:
      config: the resolved configuration.
      device_count: devices of the whole run, over all processes.
      problem_count: training problems after dropping long prompts; None while not known.

    Raises:
      ConfigError: for the first that is found; the message has the numbers and the remedy.
    """
    for name, value in flatten(config).items():
        _check_field(name, value)
    for check in (_check_thresholds, _check_groups, _check_rhythm, _check_lengths, _check_heads):
        check(config)
    for check in (_check_replay, _check_objective, _check_information, _check_mini_batches):
        check(config)
    _check_devices(config, device_count)
    problems = config.rollout.problems_per_step
    if problem_count is not None and problem_count < problems:
        raise ConfigError(
            f"rollout.problems_per_step {problems} is more than the {problem_count} training"
            f" problems; use at most {problem_count}"
        )


def nearest_field(name: str) -> str | None:
    """The field whose dotted name is closest to `name`, or None where nothing is similar."""
    # A right field in a wrong section is far in letters and near in meaning.
    last = name.rpartition(".")[2]
    same_last = [known for known in _BY_NAME if known.rpartition(".")[2] == last]
    for candidates in (same_last, list(_BY_NAME)):
        matches = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
        if matches:
            return matches[0]
    return same_last[0] if same_last else None


def unknown_field_message(name: str) -> str:
    """One line for a field that does not exist: the nearest one, or the sections."""
    nearest = nearest_field(name)
    if nearest:
        return f"unknown config field '{name}'; did you mean '{nearest}'?"
    sections = dict.fromkeys(known.partition(".")[0] for known in _BY_NAME if "." in known)
    return f"unknown config field '{name}'; the sections are: {', '.join(sections)}"


def unknown_choice_message(name: str, value: str, choices: Iterable[str]) -> str:
    """One line for a word that is not among `choices`: the nearest one, and all of them."""
    known = list(choices)
    nearest = difflib.get_close_matches(str(value), known, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'? " if nearest else ""
    return f"{name} is '{value}', which is unknown; {hint}the known ones are: {', '.join(known)}"


def _check_field(name: str, value: Any) -> None:
    field = _BY_NAME.get(name)
    if field is None:
        raise ConfigError(unknown_field_message(name))
    if field.choices and value not in field.choices:
        raise ConfigError(unknown_choice_message(name, value, field.choices))
    if isinstance(field.default, tuple):
        _check_buckets(field, value)
    elif isinstance(field.default, int | float) and not isinstance(field.default, bool):
        expected = _expected_range(field, value)
        if expected:
            raise ConfigError(
                f"{name} is {value}, expected {expected}; the default is {field.default}"
            )


def _expected_range(field: Field, value: float) -> str | None:
    """What the number should have been, or None where it is fine."""
    if not math.isfinite(value):
        return "a finite number"
    if field.positive and value <= 0:
        return "more than 0"
    if field.at_least is not None and value < field.at_least:
        return f"at least {field.at_least}"
    if field.at_most is not None and value > field.at_most:
        return f"at most {field.at_most}"
    return None


def _check_buckets(field: Field, value: Any) -> None:
    lengths = list(value)
    good = all(isinstance(length, int) and length > 0 for length in lengths)
    good = good and (bool(lengths) or field.may_be_empty)
    if not good or sorted(set(lengths)) != lengths:
        raise ConfigError(
            f"{field.name} is {tuple(lengths)}, expected positive lengths in rising order;"
            f" for example {field.default}"
        )


def _check_thresholds(config: ConfigDict) -> None:
    low, high = config.difficulty.hard_below, config.difficulty.easy_above
    if low > high:
        raise ConfigError(
            f"difficulty.hard_below {low} is above difficulty.easy_above {high};"
            " use hard_below <= easy_above, for example 0.2 and 0.8"
        )


def _check_groups(config: ConfigDict) -> None:
    if config.rollout.group_size > 1:
        return
    if needs_teacher(config):
        raise ConfigError(
            "rollout.group_size is 1, which leaves no sibling to learn from; use at least 2"
        )
    raise ConfigError(
        "rollout.group_size is 1, which makes every advantage 0 (Eq. 1); use at least 2"
    )


def _check_replay(config: ConfigDict) -> None:
    members, capacity = config.buffer.group_members, config.buffer.capacity
    if members > capacity:
        raise ConfigError(
            f"buffer.group_members {members} is more than buffer.capacity {capacity}, so there is"
            f" never that much to replay; use a capacity of at least {members}"
        )


def _check_rhythm(config: ConfigDict) -> None:
    low, high = config.rhythm.min_multiplier, config.rhythm.max_multiplier
    if high <= 1:
        raise ConfigError(
            f"rhythm.max_multiplier is {high}, expected more than 1 (Eq. 15 divides by it less 1);"
            " use 2, and rhythm.structure_scale=0 to close the gate"
        )
    if low > high:
        raise ConfigError(
            f"rhythm.min_multiplier {low} is above rhythm.max_multiplier {high};"
            " use a smaller minimum, for example 0.5"
        )


def _check_objective(config: ConfigDict) -> None:
    section = config.objective
    for name in ("distill_ratio_cap", "sampler_correction_cap"):
        if 0 < section[name] < 1:
            raise ConfigError(
                f"objective.{name} is {section[name]}, expected 0 (off) or at least 1, so that"
                " equal policies weigh 1; use 2"
            )
    if section.reshape_clip > 1:
        raise ConfigError(
            f"objective.reshape_clip is {section.reshape_clip}, expected at most 1, so that no"
            " weight is negative; use 0.2"
        )


def _check_information(config: ConfigDict) -> None:
    low, high = config.optimizer.information_floor, config.optimizer.information_max
    if low > high:
        raise ConfigError(
            f"optimizer.information_floor {low} is above optimizer.information_max {high};"
            " use a smaller floor, for example 0"
        )


def _check_mini_batches(config: ConfigDict) -> None:
    count, problems = config.optimizer.mini_batches, config.rollout.problems_per_step
    if problems % count:
        raise ConfigError(
            f"optimizer.mini_batches {count} does not divide rollout.problems_per_step {problems};"
            f" use a divisor of {problems}"
        )
    mixed = any(
        stage[f"policy_{outcome}"] > 0 and stage[f"distill_{outcome}"] > 0
        for stage in (config.warmup, config.mixed)
        for outcome in ("correct", "wrong")
    )
    if count > 1 and mixed and config.objective.divergence == "reverse_kl":
        raise ConfigError(
            f"optimizer.mini_batches is {count}, but an advantage mixture (both terms on the same"
            " samples with objective.divergence=reverse_kl) is a policy gradient on-policy only;"
            " use optimizer.mini_batches=1"
        )


def _check_lengths(config: ConfigDict) -> None:
    for buckets, limit in (
        ("rollout.prompt_buckets", "data.max_prompt_tokens"),
        ("rollout.response_buckets", "rollout.max_new_tokens"),
        ("teacher.prompt_buckets", "teacher.max_prompt_tokens"),
    ):
        longest, needed = get(config, buckets)[-1], get(config, limit)
        if longest < needed:
            raise ConfigError(
                f"the longest of {buckets} is {longest}, shorter than {limit} {needed};"
                f" add a bucket of {needed}"
            )
    student, teacher = config.data.max_prompt_tokens, config.teacher.max_prompt_tokens
    if needs_teacher(config) and teacher <= student:
        raise ConfigError(
            f"teacher.max_prompt_tokens {teacher} is not more than data.max_prompt_tokens"
            f" {student}, so no demonstration fits; use for example {2 * student}"
        )


def _check_heads(config: ConfigDict) -> None:
    heads, kv_heads = config.model.preset.num_heads, config.model.preset.num_kv_heads
    if heads % kv_heads:
        raise ConfigError(
            f"model.preset.num_heads {heads} is not a multiple of model.preset.num_kv_heads"
            f" {kv_heads}; use a divisor of {heads}"
        )


def _check_devices(config: ConfigDict, device_count: int) -> None:
    data, fsdp, _ = mesh_shape(config, device_count)
    places = data * fsdp
    problems, rows = config.rollout.problems_per_step, config.compute.micro_batch
    sampled, stored = config.rollout.group_size, config.buffer.group_members
    batch = (sampled + stored) * problems
    group = f"rollout.group_size {sampled}"
    group = f"({group} + buffer.group_members {stored})" if stored else group
    if batch % places:
        raise ConfigError(
            f"{group} x problems_per_step {problems} = {batch} is not divisible"
            f" by {places} devices (mesh data x fsdp); use a multiple of {places}"
        )
    if rows % places:
        raise ConfigError(
            f"compute.micro_batch {rows} is not divisible by {places} devices (mesh data x fsdp);"
            f" use a multiple of {places}, or 0 for all rows"
        )
    mini_batches = config.optimizer.mini_batches
    if batch // mini_batches % places:
        raise ConfigError(
            f"a mini-batch has {batch // mini_batches} rows ({group} x"
            f" problems_per_step {problems} / optimizer.mini_batches {mini_batches}), not divisible"
            f" by {places} devices (mesh data x fsdp); use fewer mini-batches"
        )
    if rows and batch % rows:
        raise ConfigError(
            f"compute.micro_batch {rows} does not divide the batch, {group} x"
            f" problems_per_step {problems} = {batch}; use a divisor of {batch}, or 0 for all rows"
        )
    if rows and rows < batch // mini_batches and batch // mini_batches % rows:
        raise ConfigError(
            f"compute.micro_batch {rows} does not divide the {batch // mini_batches} rows of a"
            f" mini-batch; use a divisor of {batch // mini_batches}, or 0 for all rows"
        )


# ---- resuming: what may differ ------------------------------------------------------------------


def changed_fields(
    old: Mapping[str, Any], new: Mapping[str, Any]
) -> tuple[list[Change], list[Change]]:
    """Compares two nested configurations.

    Args:
      old: that of the run to continue. A field that it lacks (an older version wrote it) counts as
        its default.
      new: that of the command.

    Returns:
      The differing fields that may change on resume, and those that must not. A field that no
      longer exists is among the latter.
    """
    defaults = {field.name: field.default for field in FIELDS}
    before, after = defaults | flatten(old), defaults | flatten(new)
    may: list[Change] = []
    must_not: list[Change] = []
    for name in before | after:
        change = Change(name, _plain(before.get(name)), _plain(after.get(name)))
        if change.old == change.new:
            continue
        allowed = name in _BY_NAME and _BY_NAME[name].may_change
        (may if allowed else must_not).append(change)
    return may, must_not


def resume_refusal(workdir: str | Path, may: Sequence[Change], must_not: Sequence[Change]) -> str:
    """One line for a work directory that holds a run with another configuration."""
    text = f"{workdir} holds a run with other values: {', '.join(map(str, must_not))}"
    if may:
        text += f"; these differ too, and may: {', '.join(map(str, may))}"
    return f"{text}; use the values of the run, another --workdir, or --fork_from={workdir}"


# ---- text forms ---------------------------------------------------------------------------------


def to_json(config: ConfigDict) -> str:
    """The configuration as indented JSON. Tuples become lists, which `from_json` undoes."""
    return json.dumps(config.to_dict(), indent=2)


def from_json(text: str) -> ConfigDict:
    """Reads what `to_json` wrote. Absent fields get their defaults, unknown ones are refused."""
    return assign(default(), flatten(json.loads(text)))


def describe() -> str:
    """The table of all fields in Markdown, as the documentation prints it."""
    lines = [
        "| field | default | meaning | source | may change on resume |",
        "| --- | --- | --- | --- | --- |",
    ]
    for field in FIELDS:
        choices = f" One of: {', '.join(field.choices)}." if field.choices else ""
        may_change = "yes" if field.may_change else "no"
        cells = (f"`{field.name}`", _show(field.default), field.doc + choices, field.source)
        lines.append(f"| {' | '.join(cells)} | {may_change} |")
    return "\n".join(lines)


def flatten(config: Mapping[str, Any] | ConfigDict) -> dict[str, Any]:
    """Nested sections as one dict with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat.update({f"{key}.{name}": inner for name, inner in flatten(value).items()})
        else:
            flat[key] = value
    return flat


def get(config: ConfigDict, name: str) -> Any:
    """The value of a dotted name."""
    section, key = _locate(config, name)
    return section[key]


def _locate(config: ConfigDict, name: str) -> tuple[ConfigDict, str]:
    *sections, key = name.split(".")
    for section in sections:
        config = config[section]
    return config, key


def _converted(field: Field, value: Any) -> Value:
    """`value` in the field's type; int to float and list to tuple are the only conversions."""
    kind = type(field.default)
    if kind is float and type(value) is int:
        return float(value)
    if kind is tuple and isinstance(value, list):
        return tuple(value)
    if type(value) is not kind:
        raise ConfigError(
            f"{field.name} is {value!r}, expected {_EXPECTED[kind]}; the default is {field.default}"
        )
    converted: Value = value
    return converted


_EXPECTED: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "whole numbers in brackets",
}


def _parsed(name: str, text: str, kind: type) -> Any:
    """Text of the command line in the type `kind`, as absl would read it."""
    readers: dict[type, Callable[[str], Any]] = {
        bool: _parsed_bool,
        int: int,
        float: float,
        str: str,
        tuple: _parsed_tuple,
    }
    examples = {bool: "true", int: "1000", float: "2e-4", str: "text", tuple: "(16,32)"}
    try:
        return readers[kind](text)
    except (ValueError, SyntaxError) as error:
        raise ConfigError(
            f"{name} is '{text}', expected {_EXPECTED[kind]}; write for example {examples[kind]}"
        ) from error


def _parsed_bool(text: str) -> bool:
    words = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
    if text.lower() not in words:
        raise ValueError(text)
    return words[text.lower()]


def _parsed_tuple(text: str) -> tuple[int, ...]:
    value = ast.literal_eval(text)
    members = value if isinstance(value, tuple | list) else (value,)
    if not all(type(member) is int for member in members):
        raise ValueError(text)
    return tuple(members)


def _plain(value: Any) -> Any:
    """Lists become tuples: JSON knows only lists, and they must compare as equal."""
    return tuple(value) if isinstance(value, list) else value


def _show(value: Any) -> str:
    return "(absent)" if value is None else str(value)
