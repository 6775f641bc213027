"""What a grid of small models says about a plan: the loss to expect, and the best model of the same cost."""

from __future__ import annotations

from pathlib import Path

from lit_llm.config import PlanConfig, flatten, to_plain
from lit_llm.evaluation.scaling_report import NOTHING_FITTED, interval_text

_NOT_OF_A_FAMILY = ("hidden_size", "num_layers", "num_heads", "num_key_value_heads", "intermediate_size", "init_std")
_OF_A_FAMILY = ("sequence_length", "batch_size")


def scaling_lines(config: PlanConfig) -> list[str]:
    """Compare the plan with the fit in `config.scaling`.

    Raises:
        UserError: the folder holds no fit.
    """
    from lit_llm.planning import count_parameters, parameters_by_part, training_flops_per_token
    from lit_llm.planning.scaling_family import EMBEDDINGS
    from lit_llm.planning.scaling_fit import read_fit

    fit = read_fit(Path(str(config.scaling)))
    tokens = config.trainer.max_steps * config.data.batch_size * config.data.length
    n = count_parameters(config.model)
    if fit.counted == "non_embedding":
        n -= sum(count for part, count in parameters_by_part(config.model).items() if part in EMBEDDINGS)
    flops = tokens * training_flops_per_token(config.model, config.data.length)
    advice = fit.advise(flops)
    if fit.law is None and advice is None:
        return [f"scaling: {config.scaling} says nothing of this run: its grid has {NOTHING_FITTED}"]
    lines = []
    if fit.law is None:
        lines.append(f"scaling: {config.scaling} has no law, so that no loss can be expected")
    else:
        loss, ends = fit.law.predict(n, float(tokens))
        of_bytes = "" if fit.bits_per_nat is None else f", {loss * fit.bits_per_nat:.4f} bits per byte"
        interval = "" if ends is None else f" (95% interval {interval_text(ends, '.4f')})"
        lines.append(
            f"scaling: {n:,} parameters after {tokens:,} tokens: {loss:.4f} nats per token{interval}{of_bytes}"
        )
    if advice is not None:
        expected = "" if advice.loss is None else f": {advice.loss:.4f} nats per token"
        if advice.interval is not None:
            expected += f" (95% interval {interval_text(advice.interval, '.4f')})"
        model = advice.member.model
        lines.append(
            f"best of the same {flops:.3g} operations: {advice.member.count(fit.counted):,} parameters (width "
            f"{model.hidden_size}, {model.num_layers} layers, {model.num_heads} heads), {advice.tokens:,} tokens, "
            f"{advice.steps * fit.tokens_per_step // (config.data.batch_size * config.data.length):,} steps of this "
            f"batch{expected}"
        )
    far = fit.extrapolation(flops)
    if far is not None:
        lines.append(f"note: that is {far}")
    others = _differences(config, fit.recipe)
    if others:
        lines.append(f"note: the grid had {', '.join(others)}; its law is not that of this recipe")
    return lines


def _differences(config: PlanConfig, recipe: dict) -> list[str]:  # type: ignore[type-arg]
    """Options that make other models or other losses than the grid's, with the values that it had."""
    ours, theirs = flatten({"model": to_plain(config)["model"]}), flatten({"model": recipe["model"]})
    names = [name for name in theirs if name.rpartition(".")[2] not in (*_NOT_OF_A_FAMILY, "max_position_embeddings")]
    found = [f"{name} {theirs[name]}" for name in names if ours.get(name) != theirs[name]]
    for name in _OF_A_FAMILY:
        if recipe["data"][name] != getattr(config.data, name):
            found.append(f"data.{name} {recipe['data'][name]}")
    if recipe["optimizer"]["name"] != config.optimizer.name:
        found.append(f"optimizer.name {recipe['optimizer']['name']}")
    return found
