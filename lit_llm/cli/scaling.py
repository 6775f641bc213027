"""The grid of small models from the command line: its plan, its runs, its fit and what to train."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.cli.parsing import parse
from lit_llm.config import PretrainConfig, ScalingConfig
from lit_llm.config.progress import in_words

if TYPE_CHECKING:
    from lit_llm.stages.scaling import Grid


def scaling(config: ScalingConfig) -> None:
    """Train what is missing of the grid, print the fit and what to train, and write the report; or print the plan."""
    words = [*([] if config.run is None else ["--config", config.run]), *config.options]
    run = parse(PretrainConfig, words) if words else None
    if config.gpu is not None:
        from lit_llm.planning import find_gpu

        find_gpu(config.gpu)  # a name that is not in the table is said before the hours of training

    from lit_llm.evaluation.scaling_report import (
        ISOFLOP_HEADER,
        NOTHING_FITTED,
        isoflop_rows,
        law_rows,
        write_scaling_report,
    )
    from lit_llm.evaluation.tables import markdown_table
    from lit_llm.stages.scaling import scaling as train_grid
    from lit_llm.stages.scaling_advice import advise_hours

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    grid, fit = train_grid(config, run, tell)
    if fit is None:
        print("\n".join(_plan(grid, config)))
        return
    advice = None if config.hours is None else advise_hours(fit, config, grid.passes)
    files = write_scaling_report(Path(config.output), fit, None if advice is None else advice.text)
    if fit.law is not None:
        print(markdown_table(["L(N, D)", "fit", "95% interval"], law_rows(fit), aligned=True) + "\n")
    if fit.isoflop.parabolas:
        print(markdown_table(ISOFLOP_HEADER, isoflop_rows(fit), aligned=True) + "\n")
    elif fit.law is None:
        print(f"the finished runs ({len(fit.points)}) show {NOTHING_FITTED}: more sizes or budgets may\n")
    for line in fit.lines:
        print(f"note: {line}")
    if advice is not None:
        print(f"\n{advice.text}\n")
    elif config.hours is not None:
        print(f"\nthe grid cannot say what to train: it has {NOTHING_FITTED}\n")
    print("\n".join(f"report  {path}" for path in files))


def _plan(grid: Grid, config: ScalingConfig) -> list[str]:
    """The lines of a dry run."""
    from lit_llm.evaluation.scaling_charts import budget_name
    from lit_llm.evaluation.tables import markdown_table

    header = ["operations", "model", "parameters", "without embeddings", "tokens", "D / N", "steps", "passes", "time"]
    rows = []
    for point in grid.points:
        member, n = point.member, point.member.count(grid.family.counted)
        rows.append(
            [
                budget_name(point.budget),
                member.shape,
                f"{member.total:,}",
                f"{member.non_embedding:,}",
                f"{point.tokens:,}",
                f"{point.tokens / n:.3g}",
                f"{point.steps:,}",
                f"{grid.passes(point.steps * grid.run.data.batch_size):.2g}",
                f"{grid.seconds(point):.0f} s",
            ]
        )
    whole = math.fsum(map(grid.seconds, grid.points)) / config.num_workers
    at_once = f", {config.num_workers} at a time" if config.num_workers > 1 else ""
    lines = [markdown_table(header, rows, aligned=True), ""]
    lines += [f"note: {line}" for line in grid.lines]
    budgets = ",".join(map(budget_name, grid.budgets))
    return [*lines, f"{len(grid.points)} runs{at_once}: about {in_words(whole)}; --budgets '[{budgets}]'"]
