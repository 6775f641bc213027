"""What the stages after pretraining share: they differ in their module and their data alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from lit_llm.config import ModelConfig, PostTrainingConfig, UserError, to_plain
from lit_llm.config.notices import with_pictures
from lit_llm.data.conversations.data_module import RowsDataModule
from lit_llm.interop import load_tokenizer, read_model_config, starting_adapter
from lit_llm.modules import LanguageModule
from lit_llm.stages.defaults import choose_rest, tell
from lit_llm.stages.loading import find_model
from lit_llm.stages.running import Sections, run_stage
from lit_llm.tokenizer import Tokenizer, with_chat_tokens
from lit_llm.tokenizer.chat import Message
from lit_llm.training.run import RunResult
from lit_llm.training.run_folder import is_first_process
from lit_llm.training.samples import SamplePrompts

if TYPE_CHECKING:
    from lightning import Callback

Built = tuple[LanguageModule, RowsDataModule, Tokenizer]


def run_on_rows(config: Any, build: Callable[[Any], Built], callbacks: Sequence[Callback]) -> RunResult | None:
    """Train on rows; see `lit_llm.stages.running.run_stage`.

    Args:
        config: a `PostTrainingConfig`.
        build: makes module, data and tokenizer.
        callbacks: Lightning callbacks to run besides the package's own.
    """
    return run_stage(config, build, callbacks, _introduce)


def _introduce(
    config: PostTrainingConfig, data: RowsDataModule, tokenizer: Tokenizer
) -> tuple[SamplePrompts, Sections]:
    """Show what is in the rows; returns what the samples go on from and the rows' statistics for the report."""
    if is_first_process():
        show_data(data, tokenizer)
    lines = "\n".join(f"- {line}" for line in data.statistics_lines())
    return _sample_prompts(config, data, tokenizer), [("Data", lines)]


def open_model(
    config: PostTrainingConfig,
    shape: Callable[[ModelConfig], ModelConfig] = lambda model: model,
    others: Iterable[str | None] = (),
) -> Tokenizer:
    """Read the tokenizer of the model folder, and put the folder's model, with room for new tokens, into `config`.

    Args:
        config: the run.
        shape: what the stage makes of the model.
        others: folders of models that read the same rows; a length that is null is one that they can read, too.
    """
    if config.init_from is None:
        raise UserError("init_from is missing; give the model folder, or the run, that this stage starts from")
    folder = find_model(config.init_from)
    config.init_from = str(folder)
    model = read_model_config(folder)
    if model.output == "score":
        raise UserError(f"{folder} is a reward model; give init_from a language model")
    tokenizer = load_tokenizer(folder)
    if config.data.add_chat_tokens:
        tokenizer = with_chat_tokens(tokenizer)
    elif tokenizer.vocab_size > (model.vocab_size or 0):
        raise UserError(
            f"the tokenizer of {folder} has {tokenizer.vocab_size} tokens and its model {model.vocab_size}; "
            "--data.add_chat_tokens true makes the model larger"
        )
    if tokenizer.vocab_size > (model.vocab_size or 0) and config.lora.active:
        raise UserError(
            f"the chat tokens are new to {folder}, and lora would leave them untrained; fine-tune all weights first, "
            "or start from a model that has them"
        )
    model.vocab_size = max(model.vocab_size or 0, tokenizer.vocab_size)
    model.dropout, model.attention_dropout = config.dropout, None
    model = shape(model)
    _check_model_options(config, model)
    config.model = model
    context = model.max_position_embeddings
    if config.data.sequence_length is None:
        shortest = (read_model_config(Path(other)).max_position_embeddings for other in others if other is not None)
        context = min(context, *shortest, context)
    tell([config.data.fit_length(context, f"the {context} positions of {folder}")])
    config.lora = starting_adapter(config.lora, model)[0]
    return tokenizer


def _check_model_options(config: PostTrainingConfig, model: ModelConfig) -> None:
    """Refuse options of `model`, which init_from brings; those of an earlier run's config.yaml may be given back."""
    given, default, wanted = to_plain(config.model), to_plain(ModelConfig()), to_plain(model)
    for name, value in given.items():
        if value != default[name] and value != wanted[name]:
            instead = "give dropout instead" if name in ("dropout", "attention_dropout") else "leave it out"
            raise UserError(f"model.{name} has no effect: the model is that of init_from; {instead}")


def open_data(config: PostTrainingConfig, data: RowsDataModule) -> None:
    """Read the rows, count the steps of the epochs or of trainer.max_tokens, and choose what follows from them."""
    data.setup("fit")
    config.set_steps(data.num_samples)
    config.set_steps_of_tokens(data.tokens_per_sample)
    choose_rest(config)


def show_data(data: RowsDataModule, tokenizer: Tokenizer) -> None:
    """Print what is in the rows, and one of them as the model sees it: what it learns from is coloured.

    Of a pair both answers are shown, the chosen one in green and the rejected one in red. Where there are no colours,
    as in a file, what is learned stands between signs instead.
    """
    console = Console(stderr=True, highlight=False)
    for line in data.statistics_lines():
        console.print(with_pictures(line), markup=False)
    for name, ids, supervised in data.example():
        colour = "red" if name == "rejected" else "green"
        heading = f"an example, {name}" if name else "an example"
        shown = colour if console.color_system else "between >> and <<"
        console.rule(f"{heading}; what is learned is {shown}" if any(supervised) else heading)
        text = Text()
        begin = 0
        for end in range(1, len(ids) + 1):
            if end == len(ids) or supervised[end] != supervised[begin]:
                part = with_pictures(tokenizer.decode(ids[begin:end]))
                if supervised[begin] and not console.color_system:
                    part = f">>{part}<<"
                text.append(part, style=colour if supervised[begin] else "dim")
                begin = end
        console.print(text)
    console.rule()
    sys.stderr.flush()


def _sample_prompts(config: PostTrainingConfig, data: RowsDataModule, tokenizer: Tokenizer) -> SamplePrompts:
    turns = [(Message("user", text),) for text in config.samples.prompts]
    return SamplePrompts.of_turns([*turns, *data.prompts(config.sample_prompts)], tokenizer)
