"""What a grid of runs has shown, as Markdown and as a page that loads nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from lit_llm.config.files import replace_file
from lit_llm.evaluation import pages
from lit_llm.evaluation.scaling_charts import budget_name, scaling_charts
from lit_llm.evaluation.tables import markdown_table
from lit_llm.planning.scaling_fit import Point, ScalingFit
from lit_llm.planning.scaling_law import ScalingLaw

Section = tuple[str, str]

METHOD = (
    "Each run has a schedule of its own length, so that its rate has come down where its loss is measured; warm-up is "
    "a share of its steps; the batch is the recipe's; rates go by size; all are validated on the same windows. "
    "Operations are counted from the products that a model runs, with attention, embedding and head, not estimated as "
    "6 N D. Intervals are of 95%: that of a predicted loss has the law's uncertainty and the scatter of a single run, "
    "and supposes that the law has the right form."
)


def write_scaling_report(folder: Path, fit: ScalingFit, advice: str | None) -> list[Path]:
    """Write scaling.md and scaling.html.

    Args:
        folder: of the grid.
        fit: what it has shown.
        advice: Markdown on what to train, or None.

    Returns:
        The files.
    """
    sections = [*([("What to train", advice)] if advice else []), *sections_of(fit)]
    title = f"Scaling of {len(fit.points)} runs"
    markdown = "\n\n".join([f"# {title}", *(f"## {name}\n\n{text}" for name, text in sections)])
    parts = [pages.charts(scaling_charts(fit))]
    for name, text in sections:
        parts += [pages.heading(name), pages.from_markdown(text)]
    files = {folder / "scaling.md": f"{markdown}\n", folder / "scaling.html": pages.page(title, parts)}
    for path, text in files.items():
        replace_file(path, text)
    return list(files)


def sections_of(fit: ScalingFit) -> list[Section]:
    """The sections of the report, as titles and Markdown."""
    found = []
    if fit.lines:
        found.append(("What to keep in mind", "\n".join(f"- {line}" for line in fit.lines)))
    law = law_rows(fit)
    if law:
        found.append(("L(N, D) = E + A / N^alpha + B / D^beta", markdown_table(["", "fit", "95% interval"], law)))
    if fit.isoflop.parabolas:
        found.append(("The best size of each budget", _isoflop_text(fit)))
    found.append(("Runs", markdown_table(_RUN_HEADER, [_run_row(fit, number) for number in range(len(fit.points))])))
    found.append(("How", f"N counts {_COUNTED[fit.counted]}. {METHOD}"))
    return found


_COUNTED = {
    "total": "every parameter, tied ones once",
    "non_embedding": "parameters without the embeddings and the head",
}
_RUN_HEADER = (
    *("operations", "parameters", "without embeddings", "tokens", "steps", "passes", "rate", "warm-up", "seed"),
    *("nats per token", "bits per byte", "run / law - 1", "seconds"),
)


def law_rows(fit: ScalingFit) -> list[list[str]]:
    """Rows of the law's numbers with their intervals; none without a law."""
    if fit.law is None:
        return []
    law = fit.law

    def row(name: str, value: Callable[[ScalingLaw], float], shown: str) -> list[str]:
        return [name, format(value(law.law), shown), interval_text(law.interval(value), shown)]

    rows = [
        row("E, nats per token", lambda each: each.irreducible, ".3f"),
        row("A", lambda each: each.model_factor, ".3g"),
        row("B", lambda each: each.data_factor, ".3g"),
        row("alpha", lambda each: each.model_exponent, ".3f"),
        row("beta", lambda each: each.data_exponent, ".3f"),
        row("the best N grows with compute to the power", lambda each: each.size_exponent, ".3f"),
    ]
    if not math.isnan(law.deviation):
        rows.append(["scatter of a run around the law", f"{law.deviation:.2%}", ""])
    return rows


def interval_text(ends: tuple[float, float] | None, shown: str) -> str:
    """An interval in words, empty where there is none."""
    return "" if ends is None else f"{format(ends[0], shown)} to {format(ends[1], shown)}"


def isoflop_rows(fit: ScalingFit) -> list[list[str]]:
    """Rows of the best size of each budget."""
    return [
        [
            budget_name(each.budget),
            f"{each.parameters:.3g}" if each.is_bracketed else "not between its models",
            f"{each.tokens:.3g}" if each.is_bracketed else "",
            f"{each.tokens / each.parameters:.3g}" if each.is_bracketed else "",
            f"{each.least:.4f}" if each.is_bracketed else "",
        ]
        for each in fit.isoflop.parabolas
    ]


NOTHING_FITTED = "neither a law nor two budgets with a lowest loss between their models"
"""What is said of a grid that shows nothing of other sizes than its own."""
ISOFLOP_HEADER = ("operations", "best N", "its D", "D / N", "loss")


def _isoflop_text(fit: ScalingFit) -> str:
    text = markdown_table(ISOFLOP_HEADER, isoflop_rows(fit))
    isoflop = fit.isoflop
    if isoflop.parameters is not None and isoflop.tokens is not None:
        n, d = isoflop.parameters, isoflop.tokens
        of_n = interval_text(isoflop.exponent_interval(isoflop.parameter_draws), ".2f")
        of_d = interval_text(isoflop.exponent_interval(isoflop.token_draws), ".2f")
        text += f"\n\nBest N = {n.at_middle:.3g} (C / {budget_name(n.middle)})^{n.exponent:.3f}"
        text += f"{f' ({of_n})' if of_n else ''}, "
        text += f"best D = {d.at_middle:.3g} (C / {budget_name(d.middle)})^{d.exponent:.3f}"
        text += f"{f' ({of_d})' if of_d else ''}."
    return text


def _run_row(fit: ScalingFit, number: int) -> list[str]:
    point: Point = fit.points[number]
    left = "" if fit.law is None else f"{math.expm1(fit.law.residuals[number]):+.2%}"
    return [
        budget_name(point.flops),
        f"{point.total:,}",
        f"{point.non_embedding:,}",
        f"{point.tokens:,}",
        f"{point.steps:,}",
        f"{point.passes:.2g}",
        f"{point.learning_rate:.3g}",
        f"{point.warmup_steps:,}",
        str(point.seed),
        f"{point.loss:.4f}",
        "" if point.bits_per_byte is None else f"{point.bits_per_byte:.4f}",
        left,
        f"{point.seconds:.0f}",
    ]


def advice_table(rows: Sequence[Sequence[str]]) -> str:
    """The rows of an advice as Markdown."""
    return markdown_table(["", "parameters", "tokens", "D / N", "steps", "nats per token", "95% interval"], rows)
