"""The rotary settings of `config.json`, in both spellings.

Older files have `rope_theta` and `rope_scaling`, newer ones `rope_parameters`, which some families
hold once for each type of layer. Both are read, and both are written, so that older and newer
readers find what they know.
"""

import dataclasses
from typing import Any

from drift_jax.models import rotary
from drift_jax.models.json_fields import Fields, not_implemented, positive, whole
from drift_jax.models.transformer import FULL, SLIDING, ModelConfig

Rope = tuple[float, rotary.Scaling | None]


def read(fields: Fields, *, by_type: bool, sliding: bool) -> Rope:
    """Base and scaling of the full-attention layers.

    Args:
      fields: of config.json.
      by_type: the family gives each type of layer its own parameters, and scales full ones only.
      sliding: there are sliding layers; they must have the same base and no scaling.

    Raises:
      ValueError: naming the field that is missing or not implemented.
    """
    old, new, base = (
        fields.get(name) for name in ("rope_scaling", "rope_parameters", "rope_theta")
    )
    for name, value in (("rope_scaling", old), ("rope_parameters", new)):
        if not isinstance(value, dict | None):
            raise not_implemented(name, value, None)
    found = []
    if new is not None and by_type:
        found.append(_read_by_type(new, base, sliding))
    elif new is not None:
        found.append(_parse("rope_parameters", {"rope_theta": base, **new}))
    if old is not None or new is None:
        found.append(_parse("rope_scaling", {"rope_theta": base, **(old or {})}))
    theta, scaling = found[0]
    if found[0] != found[-1] or base not in (None, theta):
        raise ValueError(
            f"rope_parameters {new} disagree with rope_theta {base}, rope_scaling {old}"
        )
    if sliding and scaling is not None and not by_type:
        raise ValueError("rope scaling of sliding layers is not implemented; expected none")
    return theta, scaling


def _read_by_type(parameters: Fields, base: Any, sliding: bool) -> Rope:
    """The same, where rope_parameters has one set for each layer type."""
    unknown = sorted(parameters.keys() - {FULL, SLIDING})
    if unknown or not all(isinstance(one, dict) for one in parameters.values()):
        raise ValueError(f"rope_parameters has {unknown}; expected one object a layer type")
    if missing := sorted({FULL, *([SLIDING] if sliding else [])} - parameters.keys()):
        raise ValueError(f"rope_parameters lacks {missing}")
    theta, scaling = _parse(f"rope_parameters.{FULL}", {"rope_theta": base, **parameters[FULL]})
    if sliding:
        where, given = f"rope_parameters.{SLIDING}", parameters[SLIDING]
        if _parse(where, {"rope_theta": base, **given}) != (theta, None):
            raise ValueError(
                f"{where} {given} is not implemented; expected rope_type 'default' and the "
                f"rope_theta {theta} of {FULL}"
            )
    return theta, scaling


def _parse(where: str, given: Fields) -> Rope:
    """Base and scaling of one set of rotary parameters."""
    given = {name: value for name, value in given.items() if value is not None}
    kind = given.pop("rope_type", given.get("type", "default"))
    given.pop("type", None)  # the oldest spelling of rope_type
    if given.pop("truncate", True) is not True:
        raise not_implemented(f"{where}.truncate", False, True)
    scalings: dict[str, type[rotary.Scaling]] = {
        "llama3": rotary.Llama3Scaling,
        "yarn": rotary.YarnScaling,
    }
    if not isinstance(kind, str) or (kind != "default" and kind not in scalings):
        raise not_implemented(f"{where}.rope_type", kind, "default", *scalings)
    settings = dataclasses.fields(scalings[kind]) if kind in scalings else ()
    known = {setting.name for setting in settings} | {"rope_theta"}
    if unknown := sorted(given.keys() - known):
        raise ValueError(f"{where} has fields {unknown}, which are not implemented for {kind!r}")
    needed = {setting.name for setting in settings if setting.default is dataclasses.MISSING}
    if missing := sorted((needed | {"rope_theta"}) - given.keys()):
        raise ValueError(f"{where}: {', '.join(missing)} is missing")
    numbers: dict[str, Any] = {name: positive(given, name) for name in given}
    theta = numbers.pop("rope_theta")
    if theta <= 1:
        raise ValueError(f"{where}: rope_theta is {theta}; expected more than 1")
    if kind not in scalings:
        return theta, None
    original = "original_max_position_embeddings"
    numbers[original] = whole(given, original)
    scaling = scalings[kind](**numbers)
    low, high = (
        (scaling.low_freq_factor, scaling.high_freq_factor)
        if isinstance(scaling, rotary.Llama3Scaling)
        else (scaling.beta_slow, scaling.beta_fast)
    )
    if not low < high:
        raise ValueError(f"{where}: {kind} slows between {low} and {high}; expected a rising range")
    return theta, scaling


def write(config: ModelConfig, *, by_type: bool) -> Fields:
    """The rotary fields of config.json, in both spellings."""
    old = None
    if config.rope_scaling is not None:
        kind = "llama3" if isinstance(config.rope_scaling, rotary.Llama3Scaling) else "yarn"
        given = dataclasses.asdict(config.rope_scaling)
        old = {"rope_type": kind} | {name: x for name, x in given.items() if x is not None}
    plain = {"rope_type": "default", "rope_theta": config.rope_theta}
    full = plain | (old or {})
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": old,
        "rope_parameters": {FULL: full, SLIDING: plain} if by_type else full,
    }
