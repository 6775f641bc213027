"""This file translates a model's configuration between config.json as transformers writes it and `ModelConfig`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lit_llm.config import ModelConfig, UserError, from_plain, to_plain
from lit_llm.config.serialization import shown
from lit_llm.interop.families import FAMILIES, Family
from lit_llm.interop.options import Options
from lit_llm.interop.rope import SCALING_KEYS

OWN_KEY = "lit_llm"
"""The key of a Hugging Face config.json under which we write those of our fields that transformers has no word for."""

NOT_COMPUTED = ("pad_vocab_to_multiple_of", "dropout", "attention_dropout", "init_std", "zero_init_projections")
"""These fields do not change what a trained model computes."""

NULLABLE = (
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "sliding_window",
    "query_pre_attention_scalar",
    "attention_softcap",
    "logits_softcap",
)
"""In these fields null has a meaning of its own; elsewhere a null in a file is the same as an absent key."""

CLASSIFIER = "ForSequenceClassification"
"""The names of the classes of transformers with a head of scores end like this."""


def read_config(values: dict[str, Any]) -> tuple[ModelConfig, list[str]]:
    """Translate the content of a Hugging Face config.json into our configuration.

    Args:
        values: the content, of a `model_type` in FAMILIES.

    Returns:
        The configuration, and the unusual keys that were passed over because they cannot change logits.

    Raises:
        UserError: an option that we do not compute, or that we do not know and that could change logits; the message
            names it.
    """
    family = FAMILIES[values["model_type"]]
    own = values.get(OWN_KEY, {})
    if not isinstance(own, dict):
        raise UserError(f"{OWN_KEY} is {shown(own)}; it must be a group of options")
    theirs = {key: value for key, value in values.items() if key not in ("model_type", OWN_KEY)}
    config, passed_over = _read(family, theirs)
    if not own:
        return config, passed_over
    whole = from_plain(ModelConfig, {**_shallow(config), **own})
    changed = _differences(whole, config)
    if changed:
        raise UserError(f"the {OWN_KEY} group contradicts the rest of the file about {', '.join(changed)}; delete it")
    return whole, passed_over


def write_config(config: ModelConfig, family: Family) -> dict[str, Any]:
    """Translate `config` into the content of a config.json of `family`; `read_config` gives `config` back."""
    values = _write(family, config)
    back, _ = _read(family, values)
    own = {name: value for name, value in to_plain(config).items() if value != to_plain(back)[name]}
    return {"model_type": family.model_type, **values, **({OWN_KEY: own} if own else {})}


def family_of(config: ModelConfig) -> tuple[Family | None, str]:
    """Find the first architecture of transformers that computes what `config` says.

    Returns:
        The architecture (for a reward model, in its form with a head of scores) and an empty text; or None and the
        reason, which names what the nearest architecture lacks.
    """
    nearest: tuple[Family, list[str]] | None = None
    for family in FAMILIES.values():
        family = family.scoring() if config.output == "score" else family
        try:
            lacking = _differences(config, _read(family, _write(family, config))[0])
        except UserError as error:  # the family has no option for it at all
            lacking = [str(error)]
        if family.needs_divisible_width and config.hidden_size % config.num_heads:
            lacking.append("hidden_size")
        if not lacking:
            return family, ""
        if nearest is None or len(lacking) < len(nearest[1]):
            nearest = family, lacking
    assert nearest is not None
    values = to_plain(config)
    found = ", ".join(f"{name} {values.get(name)}" if name in values else name for name in nearest[1])
    return None, f"transformers has no such architecture: the nearest, {nearest[0].model_type}, is without {found}"


def _read(family: Family, values: dict[str, Any]) -> tuple[ModelConfig, list[str]]:
    """Translate a file of `family`; returns the configuration and the keys that were passed over."""
    options = Options(values)
    fields = dict(family.fixed)
    for key, (name, default) in family.renamed.items():
        value = options.take(key, default)
        fields[name] = default if value is None and name not in NULLABLE else value
    fields.update(family.read(options))
    scores = _gives_scores(options)
    passed_over = options.finish()
    config = from_plain(ModelConfig, fields)
    # without a head of logits there is nothing to tie the embedding to and nothing to cap
    return config.as_score() if scores else config, passed_over


def _gives_scores(options: Options) -> bool:
    """Whether the file describes a classifier with one score.

    Raises:
        UserError: the classifier has several scores.
    """
    if not any(str(name).endswith(CLASSIFIER) for name in options.take("architectures") or ()):
        return False
    labels = options.take("id2label")
    count = options.take("num_labels", 2 if labels is None else len(labels))
    if count != 1:
        raise UserError(
            f"a classifier with num_labels {count} is not supported; only reward models are read, which have 1"
        )
    return True


def _write(family: Family, config: ModelConfig) -> dict[str, Any]:
    fields = vars(resolved(config))
    renamed = {key: fields[name] for key, (name, _) in family.renamed.items()}
    labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}} if config.output == "score" else {}
    return {"architectures": [family.architecture], **renamed, **family.written, **family.write(config), **labels}


def resolved(config: ModelConfig) -> ModelConfig:
    """Give `config` with every null replaced by the number that it stands for."""
    return replace(
        config,
        num_key_value_heads=config.kv_heads,
        head_dim=config.width_per_head,
        intermediate_size=config.feedforward_size,
        query_pre_attention_scalar=config.query_pre_attention_scalar or config.width_per_head,
    )


def _shallow(config: ModelConfig) -> dict[str, Any]:
    return dict(vars(config))


def _differences(config: ModelConfig, other: ModelConfig) -> list[str]:
    """Name the fields that make two configurations compute different things."""
    ours, theirs = _computed(config), _computed(other)
    return [name for name in ours if ours[name] != theirs[name]]


def _computed(config: ModelConfig) -> dict[str, Any]:
    fields = _shallow(resolved(config))
    for name in NOT_COMPUTED:
        del fields[name]
    fields["sliding_window"] = [config.window_of(layer) for layer in range(config.num_layers)]
    fields["full_attention_every"] = None
    if config.position != "rope":
        fields["rope_theta"] = None
    if config.rope_scaling is not None:
        scaling = config.rope_scaling
        fields["rope_scaling"] = {key: getattr(scaling, key) for key in ("type", *SCALING_KEYS[scaling.type])}
    return fields
