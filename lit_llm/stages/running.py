"""What every training stage does with its module and its data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lit_llm.evaluation.model_card import write_run_card
from lit_llm.evaluation.run_report import write_report
from lit_llm.interop import export_limits
from lit_llm.stages.battery import battery_curves, open_training_battery
from lit_llm.stages.defaults import keep_earlier_choices
from lit_llm.training.ends import AlreadyEnded
from lit_llm.training.replay import recorded_run, replay_step
from lit_llm.training.run import RunResult, fit
from lit_llm.training.run_folder import is_finished, is_first_process, put_back_replaced, run_folder

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.modules import LanguageModule
    from lit_llm.tokenizer import Tokenizer
    from lit_llm.training.samples import SamplePrompts

Sections = Sequence[tuple[str, str]]


def run_stage(
    config: Any,
    build: Callable[[Any], tuple[LanguageModule, Any, Tokenizer]],
    callbacks: Sequence[Callback] = (),
    introduce: Callable[[Any, Any, Tokenizer], tuple[SamplePrompts, Sections]] | None = None,
) -> RunResult | None:
    """Train what `build` makes, and leave a run folder; or, with `config.replay`, look into one recorded step.

    Nothing is done, and None returned, where a run that is to go on is finished.

    Args:
        config: a `RunConfig` of the stage.
        build: makes module, data module and tokenizer; fills in what `config` takes from them.
        callbacks: Lightning callbacks to run besides the package's own.
        introduce: shows the data, given config, data and tokenizer, and returns what the samples go on from and what
            the report says besides; None: as `fit` and `write_report` have it.

    Raises:
        UserError: bad input, a loss that is not finite, a full disk, or a request to stop.
    """
    if config.replay is not None:
        record, config = recorded_run(config)
        replay_step(record, config, *build(config))
        return None
    put_back_replaced(config)
    keep_earlier_choices(config)
    asked = open_training_battery(config)
    module, data, tokenizer = build(config)
    if is_finished(config):
        return None
    callbacks = [*battery_curves(config, asked, tokenizer), *callbacks]
    limits = export_limits(config.model, tokenizer)
    if limits and is_first_process():
        print(f"the finished model: {'; '.join(limits)}", file=sys.stderr)
    with run_folder(config):
        prompts, sections = (None, ()) if introduce is None else introduce(config, data, tokenizer)
        try:
            result = fit(config, module, data, tokenizer, callbacks, prompts)
        except AlreadyEnded as ended:
            if is_first_process():
                print(ended, file=sys.stderr)
            return None
        if is_first_process():
            write_run_card(config, result)
            write_report(config, result, sections)
    return result
