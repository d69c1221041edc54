"""Qwen3-4B, the paper's smaller model of the same family (Table 2).

What:      The paper's setting: arXiv 2606.30345v1 as far as it is written, our readings where it is
           silent; learning rate 5e-6 times the method's factor. Model: Qwen/Qwen3-4B.
Steps:     400 ("more than 400"), 32 problems x 8 rollouts, prompts to 2048 and responses to 8192
           tokens. Stage 1 to step 50. Below: steps an epoch, visits of a problem in 400 steps, the
           first step at which the buffer can act (for the published files, no prompt too long).
Score:     published mean@16 in %, Table 2:
           task       problems  epoch  visits  buffer    base    GRPO    SDPO    SRPO   DRIFT
           biology         450     14    28.4      15    30.8    55.5    54.0    65.8    64.3
           chemistry      1890     59     6.8      60    43.6    78.3    77.3    82.7    79.6
           material        841     26    15.2      27    61.2    80.1    74.3    81.3    82.8
           physics         720     22    17.8      23    59.8    71.9    66.7    74.0    72.2
           tooluse        4046    126     3.2     127    57.9    62.9    61.1    67.0    74.0
           toolcalls       256      8    50.0       9
           average                                      50.7    69.7    66.7    74.2    74.6
           All but DRIFT are cited from SRPO (arXiv 2604.02288), trained rows the best of 10 hours;
           that paper has 58.8, not 57.9, for the base model's tool use.
Memory:    modelled, GB on one of 8 H200 (149): state 8.0 (4.02 B parameters), with it 71.0
           while sampling and 125.4 in the longest update; 374.9 in the teacher's evaluation if
           its prompts are the longest (rollout.max_rows=64 mends that). A checkpoint is 64.4
           GB on disk. `python -m drift_jax.plan --config=configs/qwen3_4b.py` has the parts.
Hours:     estimate, modelled, biology on 8 x H200: 3 to 7 if the longest answer of every batch
           has 1,024 tokens, 56 to 89 if it has 8,192. No GPU has measured it yet.
Before:    python -m drift_jax.prepare --model=qwen3-4b --out=models/Qwen3-4B
           python -m drift_jax.prepare --task=biology --out=data
Command:   python -m drift_jax.main --config=configs/qwen3_4b.py:task=biology,method=drift
Arguments: task=tooluse (biology, chemistry, material, physics, toolcalls), method=drift, seed=0;
           toolcalls needs no files; its answers are cut at 512 tokens, and its score says nothing
           about the paper. runlocal is the same code in seconds on a CPU, with the packaged base
           model and generated problems: --config=configs/qwen3_4b.py:runlocal
"""

from ml_collections import ConfigDict

from drift_jax import paper


def get_config(arg: str = "") -> ConfigDict:
    """default < method < the paper's setting < this file; the command line comes last."""
    return paper.experiment(arg, {"model.path": "models/Qwen3-4B"})
