"""The stages after pretraining: SFT, reward model, DPO, PPO. They differ in their module, data and report alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lit_llm.cli.loading import find_model
from lit_llm.cli.stages import print_result
from lit_llm.config import (
    DPOConfig,
    ModelConfig,
    PostTrainingConfig,
    PPOConfig,
    RewardConfig,
    SFTConfig,
    UserError,
)

if TYPE_CHECKING:
    from lightning import Callback

    from lit_llm.data.rows import RowsDataModule
    from lit_llm.modules import LanguageModule
    from lit_llm.tokenizer import Tokenizer
    from lit_llm.training.run import RunResult

Built = tuple["LanguageModule", "RowsDataModule", "Tokenizer"]


def sft(config: SFTConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Fine-tune a model on conversations and say where everything is.

    Args:
        config: the run.
        callbacks: Lightning callbacks to run besides the package's own.
    """
    return _run(config, build_sft, callbacks)


def reward(config: RewardConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Train a reward model; see `sft`."""
    return _run(config, build_reward, callbacks)


def dpo(config: DPOConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Align a model with preferences directly; see `sft`."""
    return _run(config, build_dpo, callbacks)


def ppo(config: PPOConfig, callbacks: Sequence[Callback] = ()) -> RunResult | None:
    """Align a model with a reward; see `sft`."""
    if config.replay is not None:
        raise UserError("a step of PPO depends on texts that were drawn, and cannot be replayed; leave replay out")
    return _run(config, build_ppo, callbacks)


def build_sft(config: SFTConfig) -> Built:
    """Module, data and tokenizer of the stage; fills in what `config` takes from the model folder and the data.

    Raises:
        UserError: something is wrong with the model folder, the tokenizer or the rows.
    """
    import torch

    from lit_llm.data.supervised import ConversationDataModule
    from lit_llm.modules import SFTModule

    tokenizer = _open_model(config)
    data = ConversationDataModule(config.data, tokenizer, config.seed)
    _open_data(config, data)
    return SFTModule(config, torch.tensor(tokenizer.byte_lengths())), data, tokenizer


def build_reward(config: RewardConfig) -> Built:
    """See `build_sft`."""
    from lit_llm.data.preferences import PreferenceDataModule
    from lit_llm.modules import RewardModule

    tokenizer = _open_model(config, ModelConfig.as_score)
    margins, scale = config.use_margins, config.score_margin_scale
    data = PreferenceDataModule(config.data, tokenizer, config.seed, margins=margins, score_scale=scale)
    _open_data(config, data)
    return RewardModule(config), data, tokenizer


def build_dpo(config: DPOConfig) -> Built:
    """See `build_sft`."""
    from lit_llm.data.preferences import PreferenceDataModule
    from lit_llm.modules import DPOModule

    tokenizer = _open_model(config)
    if config.reference_model is not None:
        config.reference_model = str(find_model(config.reference_model))
    data = PreferenceDataModule(config.data, tokenizer, config.seed, margins=False)
    _open_data(config, data)
    return DPOModule(config, data), data, tokenizer


def build_ppo(config: PPOConfig) -> Built:
    """See `build_sft`."""
    from lit_llm.data.prompts import PromptDataModule
    from lit_llm.modules.ppo import PPOModule
    from lit_llm.modules.rewards import is_function

    has_head = config.algorithm == "ppo" and config.learns_values_by == "head"
    tokenizer = _open_model(config, lambda model: replace(model, value_head=has_head))
    config.rewards = [source if is_function(source) else str(find_model(source)) for source in config.rewards]
    if config.critic_from is not None:
        config.critic_from = str(find_model(config.critic_from))
    if config.reference_model is not None:
        config.reference_model = str(find_model(config.reference_model))
    data = PromptDataModule(config.data, tokenizer, config.seed, config.max_new_tokens)
    _open_data(config, data)
    return PPOModule(config, tokenizer), data, tokenizer


def _run(config: Any, build: Callable[[Any], Built], callbacks: Sequence[Callback]) -> RunResult | None:
    from lit_llm.evaluation.report import write_report
    from lit_llm.training.run import fit
    from lit_llm.training.run_folder import is_finished, is_first_process, run_folder

    if config.replay is not None:
        from lit_llm.training.replay import recorded_run, replay_step

        record, config = recorded_run(config)
        replay_step(record, config, *build(config))
        return None
    module, data, tokenizer = build(config)
    if is_finished(config):
        return None
    with run_folder(config):
        if is_first_process():
            _show_data(data, tokenizer)
        result = fit(config, module, data, tokenizer, callbacks, _sample_prompts(config, data, tokenizer))
        if is_first_process():
            write_report(config, result, [("Data", "\n".join(f"- {line}" for line in data.statistics_lines()))])
            print_result(result)
    return result


def _open_model(
    config: PostTrainingConfig, shape: Callable[[ModelConfig], ModelConfig] = lambda model: model
) -> Tokenizer:
    """The tokenizer of the model folder; puts the folder's model, with room for new tokens, into `config`.

    Args:
        config: the run.
        shape: what the stage makes of the model.
    """
    from lit_llm.interop import load_tokenizer, read_model_config, starting_adapter
    from lit_llm.tokenizer import with_chat_tokens

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
    model.dropout = config.dropout
    model = shape(model)
    _check_model_options(config, model)
    config.model = model
    if config.data.sequence_length > model.max_position_embeddings:
        raise UserError(
            f"data.sequence_length {config.data.sequence_length} is more than the {model.max_position_embeddings} "
            f"positions of {folder}"
        )
    config.lora = starting_adapter(config.lora, model)[0]
    return tokenizer


def _check_model_options(config: PostTrainingConfig, model: ModelConfig) -> None:
    """The options of `model` say nothing here; those of an earlier run's config.yaml may be given back."""
    from lit_llm.config import to_plain

    given, default, wanted = to_plain(config.model), to_plain(ModelConfig()), to_plain(model)
    for name, value in given.items():
        if value != default[name] and value != wanted[name]:
            instead = "give dropout instead" if name == "dropout" else "leave it out"
            raise UserError(f"model.{name} has no effect: the model is that of init_from; {instead}")


def _open_data(config: PostTrainingConfig, data: RowsDataModule) -> None:
    """Read the rows, and count the steps of the epochs."""
    data.setup("fit")
    config.set_steps(data.num_samples)


def _show_data(data: RowsDataModule, tokenizer: Tokenizer) -> None:
    """What is in the rows, and one of them as the model sees it: what it learns to say is coloured."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    for line in data.statistics_lines():
        console.print(line, markup=False)
    example = data.example()
    if example is None:
        return
    ids, supervised = example
    console.rule("an example; what is learned is green")
    text = Text()
    begin = 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or supervised[end] != supervised[begin]:
            text.append(tokenizer.decode(ids[begin:end]), style="green" if supervised[begin] else "dim")
            begin = end
    console.print(text)
    console.rule()
    sys.stderr.flush()


def _sample_prompts(config: PostTrainingConfig, data: RowsDataModule, tokenizer: Tokenizer) -> Any:
    from lit_llm.tokenizer.chat import Message
    from lit_llm.training.samples import SamplePrompts

    turns = [(Message("user", text),) for text in config.samples.prompts]
    return SamplePrompts.of_turns([*turns, *data.prompts(config.sample_prompts)], tokenizer)
