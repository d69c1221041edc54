"""Bytes on one device, by arithmetic: what always lies there, and what each phase adds.

What always lies there is counted from the real train state and its places on the mesh. What a phase
adds is a model of what XLA keeps, with these assumptions:

* Parameters are kept in parts and gathered a layer at a time; rows stay on their device.
* The compute type has a copy of student and teacher, unless that is float32 and nothing is done
  twice. A second micro-batch needs the sum of gradients beside its own.
* Unfused attention (what jax.nn.dot_product_attention is, unless told otherwise) keeps the scores
  of a layer: float32 logits and exponentials, probabilities in the compute type; one float32 more
  in the backward pass. Fused attention keeps none.
* Recomputation (`model.remat`) keeps a layer's input; without it all that the backward pass reads.
* Logits exist for one chunk of tokens, in as many float32 copies as the plain head makes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh

from drift_jax import assemble, shapes, sharding
from drift_jax import config as configs
from drift_jax.models.transformer import ModelConfig
from drift_jax.planning import sizes
from drift_jax.shapes import Lengths

Parts = dict[str, float]  # name -> bytes on one device

FLOAT = 4  # bytes of a float32
# Copies of a chunk of float32 logits at the peak of the plain head's backward pass, counted in what
# XLA compiles.
LOGITS_COPIES = 7


@dataclasses.dataclass(frozen=True)
class Setting:
    """What the arithmetic reads: a run's configuration in numbers.

    Attributes:
      model: the sizes.
      mesh: how many devices, in which axes.
      lengths: padded lengths of the update.
      new_tokens: longest response.
      sampled: rows that a step samples.
      decoded: rows that a step decodes at once.
      most_decoded: rows that an evaluation decodes at once.
      group: samples of a prompt in a step.
      teacher_group: samples of a teacher's prompt in an evaluation; 0 where there is none.
      teacher_prompt: its longest, in tokens.
      rows: rows of a step's update.
      micro: rows of a micro-batch.
      item: bytes of a number in the compute type.
      remat: whether a layer is recomputed.
      chunk: tokens whose logits exist at the same time.
      fused: whether attention keeps no scores.
    """

    model: ModelConfig
    mesh: AbstractMesh
    lengths: Lengths
    new_tokens: int
    sampled: int
    decoded: int
    most_decoded: int
    group: int
    teacher_group: int
    teacher_prompt: int
    rows: int
    micro: int
    item: int
    remat: bool
    chunk: int
    fused: bool

    @property
    def spread(self) -> int:
        """Over how many devices rows are spread."""
        return sharding.batch_devices(self.mesh)

    @property
    def apart(self) -> int:
        """Over how many devices the matrices of a product are spread."""
        return self.mesh.size // self.spread

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step."""
        return self.rows // self.micro

    def here(self, rows: int) -> float:
        """Rows on one device; all of them where they cannot be spread evenly."""
        return rows / self.spread if rows % self.spread == 0 else rows

    def heads_here(self, heads: int) -> float:
        """Heads on one device."""
        return heads / self.apart if heads % self.apart == 0 else heads


def setting(
    config: Any, model: ModelConfig, mesh: AbstractMesh, *, fused: bool, lengths: Lengths
) -> Setting:
    """The numbers of a configuration."""
    rollout = config.rollout
    sampled = rollout.problems_per_step * rollout.group_size
    at_once = assemble.make_sampler(config, model, mesh).max_rows
    rows = shapes.rows(config)
    return Setting(
        model=model,
        mesh=mesh,
        lengths=lengths,
        new_tokens=rollout.max_new_tokens,
        sampled=sampled,
        decoded=min(sampled, at_once),
        most_decoded=at_once,
        group=rollout.group_size,
        teacher_group=config.evaluation.teacher_samples if configs.needs_teacher(config) else 0,
        teacher_prompt=config.teacher.prompt_buckets[-1],
        rows=rows,
        micro=assemble.rows_at_once(config, rows),
        item=2 if assemble.compute_dtype(config) is not None else FLOAT,
        remat=config.model.remat == "full",
        chunk=config.compute.vocab_chunk,
        fused=fused,
    )


def state(config: Any, model: ModelConfig, mesh: AbstractMesh) -> Parts:
    """The train state, from its shapes and places."""
    template = assemble.state_template(config, mesh, model)

    def size(tree: Any) -> float:
        return sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )

    return {
        "parameters": size((template.trainable, template.frozen)),
        "optimizer": size((template.optimizer, template.step, template.skipped)),
        "teacher": size(template.teacher),
    }


def batch(config: Any, mesh: AbstractMesh, lengths: Lengths) -> float:
    """The arrays of a step's batch."""
    arrays = shapes.abstract_batch(config, mesh, lengths)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arrays)
    )


def phases(of: Setting, batch_bytes: float) -> dict[str, Parts]:
    """What each phase needs beyond the train state, by part."""
    updating: dict[str, Callable[[Setting], Parts]] = {
        "teacher forward": _teacher_forward,
        "student backward": _student_backward,
        "vocabulary head": _head,
        "optimizer": _optimizer,
    }
    added = {
        "sampling": sampling(of, max(of.decoded, of.most_decoded), of.group, of.lengths.prompt)
    }
    if of.teacher_group:
        added["teacher's evaluation"] = sampling(
            of, of.most_decoded, of.teacher_group, of.teacher_prompt
        )
    for name, parts in updating.items():
        if name != "teacher forward" or of.lengths.teacher:
            added[name] = {"batch": batch_bytes, **parts(of)}
    return added


# ---- sampling -----------------------------------------------------------------------------------


def sampling(of: Setting, decoded: int, group: int, prompt: int) -> Parts:
    """Caches of full length, the weights of the computation, logits, and a prefill's scores.

    Args:
      of: the numbers of a configuration.
      decoded: rows at once.
      group: rows of a prompt; so many fewer prompts are prefilled together.
      prompt: padded length of the prompts.
    """
    model, rows, prompts = of.model, of.here(decoded), max(1, decoded // group)
    per_token = sizes.cache_bytes(model, of.item) * of.heads_here(model.num_kv_heads)
    return {
        "cache": rows * (prompt + of.new_tokens) * per_token / model.num_kv_heads,
        "compute copies": of.item * _kept(of),
        # At worst all of them are gathered, since decoding unrolls the layers.
        "gathered weights": of.item * _gathered(of, _everything) if of.mesh.size > 1 else 0.0,
        "logits": 4 * FLOAT * rows * model.vocab_size,
        "scores": _scores(of, prompts, prompt, FLOAT + FLOAT + of.item),
        "layer": of.item * of.here(prompts) * prompt * _forward_numbers(of),
        # tokens, mask, log-probs, entropies
        "results": rows * of.new_tokens * (3 * FLOAT + 1),
    }


# ---- the update ---------------------------------------------------------------------------------


def _always(of: Setting, *, gradient: bool) -> Parts:
    """What every pass of the update has beside it."""
    repeated = of.micro_batches > 1
    models = 2 if of.lengths.teacher else 1
    copies = of.item < FLOAT or repeated
    gathered = of.mesh.size > 1
    return {
        "gradients": FLOAT * _kept(of) * (repeated + gradient),
        "compute copies": models * of.item * _kept(of) if copies else 0.0,
        # The layer in use and the next one; the matrices of both heads.
        "gathered weights": of.item * (2 * _gathered(of, _layer) + models * _gathered(of, _is_head))
        if gathered
        else 0.0,
    }


def _saved(of: Setting) -> Parts:
    """What the student's forward pass keeps for its backward pass."""
    model, tokens = of.model, of.here(of.micro) * of.lengths.student
    each = model.hidden_size if of.remat else _backward_numbers(of)
    kept = {"activations": of.item * tokens * (model.num_layers * each + 2 * model.hidden_size)}
    if not of.remat:
        kept["saved scores"] = model.num_layers * _scores(
            of, of.micro, of.lengths.student, FLOAT + of.item
        )
    return kept


def _teacher_forward(of: Setting) -> Parts:
    tokens = of.here(of.micro) * of.lengths.teacher
    scores = _scores(of, of.micro, of.lengths.teacher, FLOAT + FLOAT + of.item)
    attention = scores + of.item * tokens * _forward_numbers(of)
    dense = of.item * tokens * _dense_numbers(of)
    return {
        **_always(of, gradient=False),
        **_saved(of),
        "scores": scores if attention > dense else 0.0,
        "layer": max(attention, dense) - (scores if attention > dense else 0.0),
    }


def _student_backward(of: Setting) -> Parts:
    tokens = of.here(of.micro) * of.lengths.student
    scores = _scores(of, of.micro, of.lengths.student, 3 * FLOAT + of.item)
    return {
        **_always(of, gradient=True),
        **_saved(of),
        "scores": scores,
        "layer": of.item * tokens * _forward_numbers(of),
    }


def _head(of: Setting) -> Parts:
    model = of.model
    tokens = of.here(of.micro) * of.lengths.response
    chunk = min(of.chunk / of.spread, tokens)
    return {
        **_always(of, gradient=False),
        **_saved(of),
        "head chunk": LOGITS_COPIES * FLOAT * chunk * model.vocab_size / of.apart,
        # The gradient of the head's matrix, and what a chunk adds to it; hidden states of both.
        "head gradient": 2 * FLOAT * _gathered(of, _is_head),
        "hidden states": of.item * tokens * model.hidden_size * (2 + 2 * bool(of.lengths.teacher)),
    }


def _optimizer(of: Setting) -> Parts:
    """The gradient, clipped, and the move that is made of it."""
    return {"gradients": 3 * FLOAT * _kept(of)}


# ---- counts -------------------------------------------------------------------------------------


def _everything(name: str) -> bool:
    return True


def _layer(name: str) -> bool:
    return name.startswith("layers/")


def _is_head(name: str) -> bool:
    return name == "lm_head"


def _kept(of: Setting) -> float:
    """Parameters on one device."""
    return sum(
        math.prod(sharding.named(of.mesh, shape, axes).shard_shape(shape))
        for shape, axes in sizes.leaves(of.model).values()
    )


def _gathered(of: Setting, chosen: Callable[[str], bool]) -> float:
    """Parameters that a device has while it computes with them; a layer's are those of one."""
    names = sizes.leaves(of.model)
    if chosen is _is_head and of.model.tie_embeddings:
        names = {"lm_head": names["embed_tokens"]}
    total = 0.0
    for name, (shape, axes) in names.items():
        if chosen(name):
            count = sharding.gathered(shape, axes, of.mesh)
            total += count / of.model.num_layers if chosen is _layer else count
    return total


def _scores(of: Setting, rows: int, tokens: int, item: int) -> float:
    """Attention scores of one layer with so many bytes each, and the mask of which are visible."""
    if of.fused:
        return 0.0
    heads = of.heads_here(of.model.num_heads)
    return of.here(rows) * tokens**2 * (heads * item + 1)


def _forward_numbers(of: Setting) -> float:
    """Numbers of a token while a layer attends: its input, queries, keys, values."""
    query, key = _widths(of)
    return of.model.hidden_size + query + 2 * key


def _dense_numbers(of: Setting) -> float:
    """Numbers of a token in a feed-forward layer."""
    return 2 * of.model.hidden_size + 3 * of.model.intermediate_size / of.apart


def _backward_numbers(of: Setting) -> float:
    """Numbers of a token that a layer's backward pass reads.

    The residual stream and its norms; queries and keys as projected, normed, turned and laid out;
    values; what attention gives; the feed-forward layer's gate with its sigmoid and products.
    """
    model, (query, key) = of.model, _widths(of)
    dense = model.intermediate_size / of.apart
    return 8 * model.hidden_size + 4 * (query + key) + 2 * key + 2 * query + 6 * dense


def _widths(of: Setting) -> tuple[float, float]:
    model = of.model
    return (
        of.heads_here(model.num_heads) * model.head_dim,
        of.heads_here(model.num_kv_heads) * model.head_dim,
    )
