"""The loss of `head.py` in torch, all logits at once; `head.py --torch` starts it.

The operations are those of TRL's full-logit distillation loss: two log-softmaxes, their mixture as
a log-sum-exp of both stacked, two kl_div with log targets, and autograd. Each line on the standard
input is answered with one run: its loss, CPU-seconds, and how far the process's memory has grown
at most since the inputs were read.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


def loss(x):
    student = F.log_softmax(x["student_hidden"] @ x["student_head"], dim=-1)
    with torch.no_grad():
        teacher = F.log_softmax(x["teacher_hidden"] @ x["teacher_head"], dim=-1)
    halves = torch.stack([student, teacher]) - math.log(2)
    mixture = torch.logsumexp(halves, dim=0)
    to_teacher = F.kl_div(mixture, teacher, reduction="none", log_target=True)
    to_student = F.kl_div(mixture, student, reduction="none", log_target=True)
    distance = (0.5 * to_teacher + 0.5 * to_student).sum(-1)
    log_pi = torch.gather(student, -1, x["targets"][:, None])[:, 0]
    return torch.sum(x["distill_weight"] * distance - x["policy_weight"] * log_pi)


def peak_mb():
    # Not getrusage: its peak starts at that of the process that started this one.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return math.nan


def main():
    torch.set_num_threads(1)
    x = {name: torch.from_numpy(array) for name, array in np.load(sys.argv[1]).items()}
    trained = [x[name].requires_grad_() for name in ("student_hidden", "student_head")]
    before = peak_mb()
    for _ in sys.stdin:
        start = time.process_time()
        value = loss(x)
        torch.autograd.grad(value, trained)
        seconds = time.process_time() - start
        told = {"loss": value.item(), "seconds": seconds, "peak_mb": peak_mb() - before}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
