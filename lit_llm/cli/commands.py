"""Every command by its name: the options that it takes, what runs, and what is printed of the result.

`experiments/NAME.py` and `lit-llm NAME` are the same command. What runs is imported only once the options are right, so
that `--help` and a mistyped key answer at once.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lit_llm.cli.parsing import main
from lit_llm.cli.results import show_comparison, show_evaluation, show_export, show_run, show_shards, show_tokenizer
from lit_llm.config import (
    ChatConfig,
    CompareConfig,
    DPOConfig,
    EvaluateConfig,
    ExportConfig,
    FindRateConfig,
    GenerateConfig,
    PlanConfig,
    PPOConfig,
    PrepareConfig,
    PretrainConfig,
    QuickstartConfig,
    RewardConfig,
    ServeConfig,
    SFTConfig,
    TokenizerTrainingConfig,
)


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        config: the dataclass of its options.
        function: what runs, as module:name.
        about: what it does, in a line.
        show: prints what it returns, given configuration and result; None: it prints by itself.
        words: the option that takes the words before the first option as a list; None: there are to be none.
        rest: option that takes the words after a lone --, as a list; None: there is none.
    """

    config: type[Any]
    function: str
    about: str
    show: Callable[[Any, Any], None] | None = None
    words: str | None = None
    rest: str | None = None

    def run(self, config: Any) -> None:
        """Do the work and show what came out."""
        module, _, name = self.function.partition(":")
        result = getattr(importlib.import_module(module), name)(config)
        if self.show is not None:
            self.show(config, result)


COMMANDS = {
    "quickstart": Command(QuickstartConfig, "lit_llm.quickstart.run:quickstart", "every stage in a few minutes"),
    "train_tokenizer": Command(
        TokenizerTrainingConfig, "lit_llm.stages.tokenizer:train_tokenizer", "a tokenizer from text", show_tokenizer
    ),
    "prepare_data": Command(PrepareConfig, "lit_llm.stages.prepare:prepare_data", "text into shards", show_shards),
    "plan": Command(PlanConfig, "lit_llm.cli.plan:plan", "memory, time and cost of a run before it is begun"),
    "find_rate": Command(
        FindRateConfig, "lit_llm.cli.find_rate:find_rate", "learning rates compared, a few steps each", rest="options"
    ),
    "pretrain": Command(PretrainConfig, "lit_llm.stages.pretrain:pretrain", "a decoder from shards", show_run),
    "sft": Command(SFTConfig, "lit_llm.stages.sft:sft", "fine-tuning on conversations", show_run),
    "reward": Command(RewardConfig, "lit_llm.stages.reward:reward", "a reward model from preferences", show_run),
    "dpo": Command(DPOConfig, "lit_llm.stages.dpo:dpo", "alignment with preferences", show_run),
    "ppo": Command(PPOConfig, "lit_llm.stages.ppo:ppo", "alignment with a reward: PPO or GRPO", show_run),
    "generate": Command(GenerateConfig, "lit_llm.cli.generate:generate", "text from a model"),
    "evaluate": Command(EvaluateConfig, "lit_llm.stages.evaluate:evaluate", "how good a model is", show_evaluation),
    "compare": Command(
        CompareConfig,
        "lit_llm.stages.compare:compare",
        "the curves of runs together, and what differs",
        show_comparison,
        words="runs",
    ),
    "chat": Command(ChatConfig, "lit_llm.cli.chat:chat", "talk with a model in the terminal"),
    "serve": Command(ServeConfig, "lit_llm.cli.serve:serve", "OpenAI's HTTP interface and a chat page"),
    "export": Command(ExportConfig, "lit_llm.stages.export:export", "a folder for transformers, or GGUF", show_export),
}


def run_command(name: str, arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run a command with options from YAML and the command line; see `lit_llm.cli.parsing.main`.

    Args:
        name: a key of `COMMANDS`.
        arguments: the command line; None takes it from the process.
        program: what --help calls it; None: the name of the script.
    """
    command = COMMANDS[name]
    words = list(sys.argv[1:] if arguments is None else arguments)
    if command.words is not None:
        words = _with_list(command.words, words)
    if command.rest is not None and "--" in words:
        end = words.index("--")
        words[end:] = [f"--{command.rest}={json.dumps(words[end + 1 :])}"]
    main(command.config, command.run, words, program)


def _with_list(option: str, arguments: Sequence[str]) -> list[str]:
    """A command line whose first words, up to the first option, are given to `option` as a list."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), arguments))
    return [*([f"--{option}", json.dumps(words)] if words else []), *arguments[len(words) :]]


def console() -> None:
    """The console command `lit-llm NAME ...`; a hyphen in a name is as good as an underscore."""
    words = sys.argv[1:]
    name = words[0].replace("-", "_") if words else ""
    if name in COMMANDS:
        run_command(name, words[1:], program=f"lit-llm {words[0]}")
        return
    asked = bool(words) and words[0] in ("-h", "--help")
    lines = ["usage: lit-llm COMMAND [options]; lit-llm COMMAND --help lists the options", ""]
    if words and not asked:
        lines.insert(0, f"error: there is no command {words[0]}")
    lines += [f"  {name:16} {command.about}" for name, command in COMMANDS.items()]
    print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)
