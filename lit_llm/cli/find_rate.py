"""The sweep over learning rates from the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_llm.cli.parsing import parse
from lit_llm.config import DPOConfig, FindRateConfig, PretrainConfig, RewardConfig, SFTConfig

if TYPE_CHECKING:
    from lit_llm.stages.find_rate import RateTrial

_KINDS: dict[str, type[Any]] = {"pretrain": PretrainConfig, "sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}


def find_rate(config: FindRateConfig) -> None:
    """Sweep over the rates of a stage's run, print the losses and the suggestion, and write the page."""
    run = parse(_KINDS[config.stage], [*([] if config.run is None else ["--config", config.run]), *config.options])

    from lit_llm.evaluation.tables import markdown_table
    from lit_llm.stages.find_rate import find_rate as sweep_rates
    from lit_llm.stages.find_rate import table_of, verdict, write_page

    def tell(trial: RateTrial) -> None:
        print(f"rate {trial.rate:g}: loss {trial.score:.4f} after {len(trial.losses)} steps", file=sys.stderr)

    sweep = sweep_rates(run, config.rates, config.steps, tell)
    header, *rows = table_of(sweep)
    # what was trained for is said before anything is written, which may fail
    print(markdown_table(header, rows, aligned=True))
    print(verdict(sweep), flush=True)
    write_page(sweep, Path(config.output))
    print(f"picture  {config.output}")
