"""Rotary options in a Hugging Face config.json, under their old and their new names."""

from __future__ import annotations

import math
from typing import Any

from lit_llm.config import RopeScaling, UserError
from lit_llm.interop.options import Options

SCALING_KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}
"""Fields of `RopeScaling`, and keys of theirs, that each kind of scaling reads."""

NEUTRAL: dict[str, Any] = {"partial_rotary_factor": 1.0, "truncate": True}
IGNORED = {"type", "rope_type", "rope_theta", "original_max_position_embeddings"}
MSCALES = ("mscale", "mscale_all_dim")


def read_rope(options: Options, default_theta: float = 10000.0) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a ModelConfig.

    `rope_theta` inside the new `rope_parameters` wins over the old key beside it, as in transformers.

    Raises:
        UserError: a kind of scaling or an option of it that we do not compute, or old and new keys that contradict
            each other.
    """
    old_theta = options.take("rope_theta", default_theta)
    old, new = options.take("rope_scaling"), options.take("rope_parameters")
    for key, value in (("rope_scaling", old), ("rope_parameters", new)):
        if value is not None and not isinstance(value, dict):
            raise UserError(f"{key} is {value!r}; it must be a group of options")
    length = options.take("max_position_embeddings")
    if old and new and read_scaling(old, length) != read_scaling(new, length):
        raise UserError("rope_scaling and rope_parameters contradict each other; delete the wrong one from the file")
    parameters = new or old or {}
    theta = parameters.get("rope_theta", old_theta)
    return {"rope_theta": float(theta), "rope_scaling": read_scaling(parameters, length)}


def read_scaling(parameters: dict[str, Any], max_position_embeddings: int | None) -> RopeScaling | None:
    """The scaling that a group of rotary options means; None where it means none."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    keys = SCALING_KEYS.get(kind, ())
    if kind != "default" and not keys:
        raise UserError(f"rope_type {kind!r} is not supported (only {', '.join(['default', *SCALING_KEYS])})")
    for key, neutral in NEUTRAL.items():
        if parameters.get(key, neutral) != neutral:
            raise UserError(f"the rotary option {key} {parameters[key]!r} is not supported (only {neutral!r})")
    extra = MSCALES if kind == "yarn" else ()
    unknown = sorted(set(parameters) - set(keys) - set(extra) - set(NEUTRAL) - IGNORED)
    if unknown:
        raise UserError(f"rope_type {kind!r} has no option {', '.join(unknown)}")
    if kind == "default":
        return None
    values = {key: parameters[key] for key in keys if parameters.get(key) is not None}
    if "original_max_position_embeddings" in keys:
        original = values.setdefault("original_max_position_embeddings", max_position_embeddings)
        if original and max_position_embeddings:
            values.setdefault("factor", max_position_embeddings / original)
    if "attention_factor" not in values and all(parameters.get(key) for key in extra or (None,)):
        inner, whole = (0.1 * parameters[key] * math.log(values["factor"]) + 1.0 for key in MSCALES)
        values["attention_factor"] = inner / whole
    if "factor" not in values:
        raise UserError(f"rope_type {kind!r} has no factor")
    return RopeScaling(type=kind, **values)


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The old and the new keys, in agreement: transformers 4 reads the old ones only."""
    kind = "default" if scaling is None else scaling.type
    values = {key: getattr(scaling, key) for key in SCALING_KEYS.get(kind, ())}
    options = {"rope_type": kind, **{key: value for key, value in values.items() if value is not None}}
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else options,
        "rope_parameters": {**options, "rope_theta": theta},
    }


def read_layered_rope(options: Options) -> dict[str, Any]:
    """As `read_rope`, and `rope_theta_windowed`, of a model that has other positions in layers with a window (Gemma 3).

    Raises:
        UserError: as `read_rope`, or layers with a window have positions that are stretched.
    """
    length = options.take("max_position_embeddings")
    theta, windowed = options.take("rope_theta", 1e6), options.take("rope_local_base_freq", 1e4)
    old, new = options.take("rope_scaling"), options.take("rope_parameters") or {}
    if set(new) - {"full_attention", "sliding_attention"}:
        raise UserError("rope_parameters must have one group for full_attention and one for sliding_attention")
    full, sliding = new.get("full_attention") or {}, new.get("sliding_attention") or {}
    if old and full and read_scaling(old, length) != read_scaling(full, length):
        raise UserError("rope_scaling and rope_parameters contradict each other; delete the wrong one from the file")
    if read_scaling(sliding, length) is not None:
        raise UserError("stretched positions in layers with a sliding window are not supported")
    scaling = read_scaling(full or old or {}, length)
    theta = float(full.get("rope_theta", theta))
    windowed = float(sliding.get("rope_theta", windowed))
    same = scaling is None and windowed == theta
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_theta_windowed": None if same else windowed}


def write_layered_rope(theta: float, scaling: RopeScaling | None, windowed: float) -> dict[str, Any]:
    """The reverse of `read_layered_rope`, under the old and the new keys."""
    flat = write_rope(theta, scaling)
    return {
        "rope_theta": theta,
        "rope_local_base_freq": windowed,
        "rope_scaling": flat["rope_scaling"],
        "rope_parameters": {
            "full_attention": flat["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": windowed},
        },
    }
