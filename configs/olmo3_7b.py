"""OLMo3-7B, the paper's model of another family (Table 2).

What:      The paper's setting: arXiv 2606.30345v1 as far as it is written, our readings where it is
           silent; learning rate 5e-6 times the method's factor. Model: allenai/Olmo-3-7B-Instruct.
Steps:     400 ("more than 400"), 32 problems x 8 rollouts, prompts to 2048 and responses to 8192
           tokens. Stage 1 to step 50. Below: steps an epoch, visits of a problem in 400 steps, the
           first step at which the buffer can act (for the published files, no prompt too long).
Score:     published mean@16 in %, Table 2:
           task       problems  epoch  visits  buffer    base    GRPO    SDPO SC-SDPO   DRIFT
           biology         450     14    28.4      15    16.2    49.8    52.8    55.9    61.3
           chemistry      1890     59     6.8      60    22.8    57.5    80.0    81.5    82.0
           material        841     26    15.2      27    36.7    73.5    79.1    79.1    79.2
           physics         720     22    17.8      23    37.7    62.7    66.1    71.1    71.3
           tooluse        4046    126     3.2     127    39.3    60.6    62.1    62.9    70.2
           toolcalls       256      8    50.0       9
           average                                      30.5    60.8    68.0    70.1    72.8
           Base, GRPO (on-policy; off-policy averages 63.2) and SDPO are cited from SDPO (arXiv
           2601.20802), the best of 5 hours, SC-SDPO from its own paper (arXiv 2605.27765).
Memory:    modelled, GB on one of 8 H200 (149): state 14.6 (7.30 B parameters), with it 119.8
           while sampling and 136.9 in the longest update; 321.7 in the teacher's evaluation if
           its prompts are the longest (rollout.max_rows=32 mends that). A checkpoint is 116.8
           GB on disk. `python -m drift_jax.plan --config=configs/olmo3_7b.py` has the parts.
Hours:     estimate, modelled, biology on 8 x H200: 5 to 20 if the longest answer of every batch
           has 1,024 tokens, 89 to 203 if it has 8,192. No GPU has measured it yet.
Before:    python -m drift_jax.prepare --model=olmo3-7b --out=models/OLMo3-7B
           python -m drift_jax.prepare --task=biology --out=data
Command:   python -m drift_jax.main --config=configs/olmo3_7b.py:task=biology,method=drift
Arguments: task=tooluse (biology, chemistry, material, physics, toolcalls), method=drift, seed=0;
           toolcalls needs no files; its answers are cut at 512 tokens, and its score says nothing
           about the paper. runlocal is the same code in seconds on a CPU, with the packaged base
           model and generated problems: --config=configs/olmo3_7b.py:runlocal
"""

from ml_collections import ConfigDict

from drift_jax import paper


def get_config(arg: str = "") -> ConfigDict:
    """default < method < the paper's setting < this file; the command line comes last."""
    values: dict[str, paper.Value] = {
        "model.path": "models/OLMo3-7B",
        # 32 key-value heads where Qwen3 has 8: half a step's rows fill the memory.
        "rollout.max_rows": 128,
    }
    return paper.experiment(arg, values)
