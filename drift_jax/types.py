"""The records that travel between the parts of one training step: plain Python and numpy.

Shapes are written `[problem, group]` for values per sample before flattening, and `[batch, time]`
for values per token, where `batch = problem * group_size + rollout` (problem-major).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Problem:
    """One question with a verifiable answer.

    Attributes:
      id: `task/split/idx`. The same in every epoch and every run: pass rates and the success
        buffer are kept under it.
      task: name of the task; it selects the grader.
      messages: chat messages, each with `role` and `content`; the last one is the user's.
      answer: gold answer, in the form that the task's grader reads.
      level: difficulty or sub-task, for the rows of result tables only; may be empty.
    """

    id: str
    task: str
    messages: tuple[dict[str, str], ...]
    answer: str
    level: str = ""


@dataclass(frozen=True)
class Demonstration:
    """One example of the warm start.

    Attributes:
      problem: what is asked; its answer is the right one, whatever the demonstration says.
      reference: a solution shown in the prompt by `prompting.render_teacher`, or None for a plain
        demonstration, whose prompt is `prompting.render(problem)`.
      response: the text to imitate, without the end token.
    """

    problem: Problem
    reference: str | None
    response: str


@dataclass
class Rollouts:
    """The responses of one step, G to a problem.

    Attributes:
      tokens: response tokens, the stop token included, padding after it. int32 [batch, time].
      mask: True on response tokens, the stop token included. bool [batch, time].
      log_probs: log-probability of each sampled token under the full distribution at
        temperature 1, in nats. float32 [batch, time].
      entropies: entropy of the distribution each token was drawn from (full vocabulary,
        temperature 1), in nats. float32 [batch, time].
      finished: True where a stop token was produced before the length limit. bool [batch].
    """

    tokens: np.ndarray
    mask: np.ndarray
    log_probs: np.ndarray
    entropies: np.ndarray
    finished: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of response tokens, the stop token included. int64 [batch]."""
        return np.asarray(self.mask).sum(axis=1, dtype=np.int64)

    @property
    def mean_entropy(self) -> np.ndarray:
        """Entropy in nats, averaged over the response tokens. float64 [batch].

        A mean and not a sum, or else choosing by entropy would be choosing by length. An empty
        response has 0.
        """
        total = np.where(self.mask, self.entropies, 0.0).sum(axis=1, dtype=np.float64)
        return total / np.maximum(self.lengths, 1)


@dataclass(frozen=True, eq=False)
class Routes:
    """Where the samples of one step go (DRIFT sections 3.1 and 3.2).

    Attributes:
      routing_weight: gamma_i, weight of the policy-gradient term of a problem's correct samples.
        float [problem].
      is_medium: beta_i, True where the pass rate lies in the medium bin. bool [problem]; with soft
        bins the share of medium, float [problem].
      is_correct: True where the reward reaches the success threshold. bool [problem, group].
      failure_weight: weight of the distillation term of a problem's wrong samples, 1 in the paper.
        float [problem], or one number for all.
    """

    routing_weight: np.ndarray
    is_medium: np.ndarray
    is_correct: np.ndarray
    failure_weight: np.ndarray | float = 1.0


@dataclass(frozen=True)
class Score:
    """What a grader says about one response.

    Attributes:
      reward: 1.0 for a correct response, 0.0 otherwise; any finite number from a user's function.
      prediction: the answer that was read from the response, for majority votes and for people.
      well_formed: True where the response has the form that the prompt asks for. It does not
        enter the reward.
      feedback: what was wrong, in words; empty where there is nothing to say. It may contain the
        gold answer.
      failed: True where the grader itself failed, so that the reward of 0 says nothing about the
        response. Only a user's function can; feedback has the cause.
    """

    reward: float
    prediction: str
    well_formed: bool
    feedback: str
    failed: bool = False
