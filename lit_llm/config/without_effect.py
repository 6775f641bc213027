"""Options of a run that are given and that others leave without effect."""

from __future__ import annotations

from lit_llm.config.bounds import given
from lit_llm.config.run import RunConfig

_OF_MUON = (
    *("muon_learning_rate", "muon_momentum", "muon_momentum_start", "muon_momentum_warmup_steps"),
    *("muon_ns_steps", "muon_ns_dtype"),
)


def without_effect(config: RunConfig) -> list[str]:
    """Say for each such option, in a line, what leaves it without effect.

    They are no errors: a recipe whose optimizer or schedule is replaced by one option keeps what the other one reads.
    """
    schedule, spikes = config.schedule.name, config.trainer.spike_action
    cases = (
        ("optimizer", _OF_MUON, config.optimizer.name != "muon", f"optimizer.name {config.optimizer.name}"),
        ("schedule", ("decay_fraction",), schedule != "wsd", f"schedule.name {schedule}"),
        ("schedule", ("min_ratio",), schedule == "constant", f"schedule.name {schedule}"),
        ("trainer", ("spike_window", "spike_sigmas"), spikes == "off", f"trainer.spike_action {spikes}"),
        ("data", ("prefetch_factor",), config.data.num_workers == 0, "data.num_workers 0"),
    )
    lines = []
    for group, names, is_idle, beside in cases:
        options = getattr(config, group)
        for name in given(options, *names) if is_idle else ():
            lines.append(f"{group}.{name} {getattr(options, name)} has no effect with {beside}")
    return lines
