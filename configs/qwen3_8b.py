"""Qwen3-8B, the paper's primary model (Table 1; ablations in Table 3; dynamics in Figures 3 to 6).

What:      The paper's setting: arXiv 2606.30345v1 as far as it is written, our readings where it is
           silent; learning rate 5e-6 times the method's factor. Model: Qwen/Qwen3-8B.
Steps:     400 ("more than 400"), 32 problems x 8 rollouts, prompts to 2048 and responses to 8192
           tokens. Stage 1 to step 50. Below: steps an epoch, visits of a problem in 400 steps, the
           first step at which the buffer can act (for the published files, no prompt too long).
Score:     published mean@16 in %, Table 1:
           task       problems  epoch  visits  buffer    base    GRPO    SDPO    SRPO   DRIFT
           biology         450     14    28.4      15    30.8    47.4    64.8    72.8    74.4
           chemistry      1890     59     6.8      60    41.2    65.6    78.9    83.0    82.0
           material        841     26    15.2      27    58.9    73.5    76.1    81.5    81.4
           physics         720     22    17.8      23    59.2    60.6    72.7    78.4    80.5
           tooluse        4046    126     3.2     127    57.5    67.7    67.7    71.2    79.2
           toolcalls       256      8    50.0       9
           average                                      49.5    63.0    72.0    77.4    79.5
           GRPO and SDPO are the paper's own runs of SDPO's code; base is SDPO's (arXiv 2601.20802)
           measurement, SRPO the best of 10 hours in its own paper (arXiv 2604.02288).
Memory:    modelled, GB on one of 8 H200 (149): state 16.4 (8.19 B parameters), with it 88.8
           while sampling and 140.5 in the longest update; 392.8 in the teacher's evaluation if
           its prompts are the longest (rollout.max_rows=64 mends that). A checkpoint is 131.1
           GB on disk. `python -m drift_jax.plan --config=configs/qwen3_8b.py` has the parts.
Hours:     estimate, modelled, biology on 8 x H200: 4 to 12 if the longest answer of every batch
           has 1,024 tokens, 63 to 125 if it has 8,192. No GPU has measured it yet.
Before:    python -m drift_jax.prepare --model=qwen3-8b --out=models/Qwen3-8B
           python -m drift_jax.prepare --task=biology --out=data
Command:   python -m drift_jax.main --config=configs/qwen3_8b.py:task=biology,method=drift
Arguments: task=tooluse (biology, chemistry, material, physics, toolcalls), method=drift, seed=0;
           toolcalls needs no files; its answers are cut at 512 tokens, and its score says nothing
           about the paper. runlocal is the same code in seconds on a CPU, with the packaged base
           model and generated problems: --config=configs/qwen3_8b.py:runlocal
"""

from ml_collections import ConfigDict

from drift_jax import paper


def get_config(arg: str = "") -> ConfigDict:
    """default < method < the paper's setting < this file; the command line comes last."""
    return paper.experiment(arg, {"model.path": "models/Qwen3-8B"})
