"""report.md: what a run was, what came out, what it writes."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import lightning
import torch

from lit_llm.config import RunConfig
from lit_llm.config.files import replace_file
from lit_llm.evaluation.tables import markdown_table
from lit_llm.planning import count_parameters
from lit_llm.training.run import RunResult


def write_report(config: RunConfig, result: RunResult, sections: Sequence[tuple[str, str]] = ()) -> None:
    """Write report.md into the run folder.

    Args:
        config: the run.
        result: what `fit` returned.
        sections: more of them, as (title, Markdown).
    """
    model, data, trainer = config.model, config.data, config.trainer
    shape = (
        f"{count_parameters(model):,} parameters: {model.num_layers} layers, width {model.hidden_size}, "
        f"{model.num_heads} heads, vocabulary {model.vocab_size:,}"
    )
    facts = [
        ("model", shape),
        ("training", f"{result.steps:,} steps of {data.batch_size} rows, {result.tokens:,} tokens"),
        *([("ended early", result.ended_early)] if result.ended_early is not None else []),
        ("optimizer", f"{config.optimizer.name}, schedule {config.schedule.name}, precision {trainer.precision}"),
        ("speed", f"{result.tokens_per_second:,.0f} tokens/s at the end"),
        ("made with", f"torch {torch.__version__}, lightning {lightning.__version__}, {platform.machine()}"),
    ]
    curves = [(name, f"{value:.4f}") for name, value in sorted(result.metrics.items()) if "/" in name]
    parts = [
        f"# {config.run_name}",
        markdown_table(["what", "value"], facts),
        "## Last values",
        markdown_table(["curve", "value"], curves),
    ]
    for title, body in sections:
        parts += [f"## {title}", body]
    if result.samples:
        parts.append("## Samples")
        parts += ["\n".join("    " + line for line in text.splitlines()) for text in result.samples]
    replace_file(config.folder / "report.md", "\n\n".join(parts) + "\n")
