"""This file translates the rotary options of a Hugging Face config.json, under their old and their new names."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from lit_llm.config import RopeScaling, UserError
from lit_llm.config.serialization import shown
from lit_llm.interop.options import Options

SCALING_KEYS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"),
}
"""For each kind of scaling, the fields of `RopeScaling` that it reads; transformers' keys have the same names."""

NEUTRAL: dict[str, Any] = {"partial_rotary_factor": 1.0, "truncate": True}
IGNORED = {"type", "rope_type", "rope_theta", "original_max_position_embeddings"}
MOST_NUMBER = 1e300
"""Numbers of a file beyond this are refused, so that nothing that is computed from one overflows."""
MSCALES = ("mscale", "mscale_all_dim")


def read_rope(options: Options, default_theta: float = 10000.0) -> dict[str, Any]:
    """Read `rope_theta` and `rope_scaling` of a ModelConfig.

    `rope_theta` inside the new `rope_parameters` wins over the old key beside it, as in transformers.

    Raises:
        UserError: a kind of scaling or an option of it that we do not compute, or old and new keys that contradict
            each other.
    """
    old_theta = options.take("rope_theta")
    old, new = _group(options, "rope_scaling"), _group(options, "rope_parameters")
    length = options.take("max_position_embeddings")
    _add_original_length(options, old, new)
    if old and new and read_scaling(old, length) != read_scaling(new, length):
        raise UserError("rope_scaling and rope_parameters contradict each other; delete the wrong one from the file")
    parameters = new or old
    theta = parameters.get("rope_theta", old_theta)
    return {
        "rope_theta": default_theta if theta is None else number("rope_theta", theta),
        "rope_scaling": read_scaling(parameters, length),
    }


def number(key: str, value: Any) -> float:
    """Take a value of the file that must be a number.

    Raises:
        UserError: the value is no number, or is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not -MOST_NUMBER < value < MOST_NUMBER:
        raise UserError(f"{key} is {shown(value)}; it must be a finite number")
    return float(value)


def _group(options: Options, key: str) -> dict[str, Any]:
    value = options.take(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{key} is {shown(value)}; it must be a group of options")
    return dict(value or {})


def _add_original_length(options: Options, *groups: dict[str, Any]) -> None:
    """Add the original context length to groups of scaling where a file (Phi-3's) has it beside them.

    Raises:
        UserError: a group has another length.
    """
    key = "original_max_position_embeddings"
    outside = options.take(key)
    scaling = [group for group in groups if key in SCALING_KEYS.get(str(_kind(group)), ())]
    if outside is None:
        return
    if not scaling:
        options.pass_over(key)
    for group in scaling:
        if group.setdefault(key, outside) != outside:
            raise UserError(f"{key} is {shown(outside)}, and {shown(group[key])} in the rotary options; delete one")


def _kind(parameters: dict[str, Any]) -> Any:
    return parameters.get("rope_type", parameters.get("type", "default"))


def read_scaling(parameters: dict[str, Any], max_position_embeddings: int | None) -> RopeScaling | None:
    """Read the scaling that a group of rotary options means; None where it means none."""
    kind = _kind(parameters)
    keys = SCALING_KEYS.get(kind, ()) if isinstance(kind, str) else ()
    if kind != "default" and not keys:
        raise UserError(f"rope_type {shown(kind)} is not supported (only {', '.join(['default', *SCALING_KEYS])})")
    for key, neutral in NEUTRAL.items():
        if parameters.get(key, neutral) not in (neutral, None):
            raise UserError(f"the rotary option {key} {shown(parameters[key])} is not supported (only {neutral!r})")
    extra = MSCALES if kind == "yarn" else ()
    given = {key for key, value in parameters.items() if value is not None}
    unknown = sorted(given - set(keys) - set(extra) - set(NEUTRAL) - IGNORED)
    if unknown:
        raise UserError(f"rope_type {kind!r} has no option {', '.join(unknown)}")
    if kind == "default":
        return None
    values = {key: parameters[key] for key in keys if parameters.get(key) is not None}
    if "original_max_position_embeddings" in keys:
        original = values.setdefault("original_max_position_embeddings", max_position_embeddings)
        if original and max_position_embeddings:
            stretched = number("max_position_embeddings", max_position_embeddings)
            values.setdefault("factor", stretched / number("original_max_position_embeddings", original))
    if "factor" not in values:
        raise UserError(f"rope_type {kind!r} has no factor")
    scaling = RopeScaling(type=kind, **values)
    if scaling.attention_factor is None and all(parameters.get(key) for key in extra or (None,)):
        inner, whole = (0.1 * number(key, parameters[key]) * math.log(scaling.factor) + 1.0 for key in MSCALES)
        scaling = replace(scaling, attention_factor=inner / (whole or math.nan))
    return scaling


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """Write the old and the new keys with the same meaning, as transformers 4 reads only the old ones."""
    kind = "default" if scaling is None else scaling.type
    values = {key: getattr(scaling, key) for key in SCALING_KEYS.get(kind, ())}
    options = {"rope_type": kind, **{key: value for key, value in values.items() if value is not None}}
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else options,
        "rope_parameters": {**options, "rope_theta": theta},
    }


def read_layered_rope(options: Options) -> dict[str, Any]:
    """Read the rotary fields of a model whose layers with a window have other wavelengths (Gemma 3).

    They are `rope_theta`, `rope_scaling` and `rope_theta_windowed`.

    Raises:
        UserError: as `read_rope`, or layers with a window have positions that are stretched.
    """
    length = options.take("max_position_embeddings")
    theta, windowed = options.take("rope_theta", 1e6), options.take("rope_local_base_freq", 1e4)
    old, new = _group(options, "rope_scaling"), _group(options, "rope_parameters")
    full, sliding = new.get("full_attention") or {}, new.get("sliding_attention") or {}
    groups = isinstance(full, dict) and isinstance(sliding, dict)
    if set(new) - {"full_attention", "sliding_attention"} or not groups:
        raise UserError("rope_parameters must have one group for full_attention and one for sliding_attention")
    if old and full and read_scaling(old, length) != read_scaling(full, length):
        raise UserError("rope_scaling and rope_parameters contradict each other; delete the wrong one from the file")
    if read_scaling(sliding, length) is not None:
        raise UserError("stretched positions in layers with a sliding window are not supported")
    scaling = read_scaling(full or old, length)
    theta = number("rope_theta", full.get("rope_theta", theta))
    windowed = number("rope_local_base_freq", sliding.get("rope_theta", windowed))
    same = scaling is None and windowed == theta
    return {"rope_theta": theta, "rope_scaling": scaling, "rope_theta_windowed": None if same else windowed}


def write_layered_rope(theta: float, scaling: RopeScaling | None, windowed: float) -> dict[str, Any]:
    """Write what `read_layered_rope` reads, under the old and the new keys."""
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
