"""Every command by its name: the options that it takes, the function that runs, and how its result is printed.

`experiments/NAME.py` and `lit-llm NAME` are the same command. What runs is imported only once the options are right, so
that `--help` and a mistyped key answer at once.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lit_llm.cli.closed_output import ends_with_its_reader
from lit_llm.cli.lean_imports import without_unused_packages
from lit_llm.cli.parsing import main
from lit_llm.cli.results import (
    show_canaries,
    show_classifier,
    show_comparison,
    show_contamination,
    show_corpus,
    show_evaluation,
    show_export,
    show_fetched,
    show_judgement,
    show_run,
    show_safety,
    show_shards,
    show_tokenizer,
    show_tokenizer_evaluation,
)
from lit_llm.cli.short_help import ShortHelp
from lit_llm.cli.windows import show_windows
from lit_llm.config import (
    CanariesConfig,
    ChatConfig,
    ClassifierConfig,
    CompareConfig,
    ContaminationConfig,
    DPOConfig,
    EvaluateConfig,
    ExportConfig,
    FetchModelConfig,
    FindRateConfig,
    GenerateConfig,
    InspectConfig,
    JudgeConfig,
    PlanConfig,
    PPOConfig,
    PrepareConfig,
    PretrainConfig,
    QuickstartChatConfig,
    QuickstartConfig,
    RecipeConfig,
    RewardConfig,
    SafetyConfig,
    ScalingConfig,
    ServeConfig,
    SFTConfig,
    TokenizerEvaluationConfig,
    TokenizerTrainingConfig,
)


@dataclass(frozen=True)
class Command:
    """A command of the command line.

    Attributes:
        config: the dataclass of its options.
        function: what runs, as module:name.
        about: what it does, in a line.
        show: prints what it returns, given configuration and result; None: it prints by itself.
        words: the option that takes the words before the first option as a list; None: there are to be none.
        rest: option that takes the words after a lone --, as a list; None: there is none.
        everyday: the options that --help shows, dotted; none: all. --help-all shows all in any case.
        example: arguments of the command that --help ends with.
    """

    config: type[Any]
    function: str
    about: str
    show: Callable[[Any, Any], None] | None = None
    words: str | None = None
    rest: str | None = None
    everyday: tuple[str, ...] = ()
    example: str = ""

    def as_options(self, arguments: Sequence[str]) -> list[str]:
        """A command line in which the words of `words` and `rest` are given by the names of those options."""
        given = list(arguments)
        if self.words is not None:
            first = list(itertools.takewhile(lambda word: not word.startswith("-"), given))
            given = [*([f"--{self.words}", _as_list(first)] if first else []), *given[len(first) :]]
        if self.rest is not None and "--" in given:
            end = given.index("--")
            given[end:] = [f"--{self.rest}={_as_list(given[end + 1 :])}"]
        return given

    def run(self, config: Any) -> None:
        """Do the work and show what came out."""
        module, _, name = self.function.partition(":")
        with without_unused_packages():
            function = getattr(importlib.import_module(module), name)
        result = function(config)
        if self.show is not None:
            self.show(config, result)


def _as_list(words: list[str]) -> str:
    """Write words as a list that YAML reads: it knows no pairs of surrogates, and not all characters as they are."""
    text = json.dumps(words, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


_RUN = ("run_name", "ckpt_path", "overwrite")
_TRAINING = (
    *("data.sequence_length", "data.batch_size", "data.micro_batch_size"),
    "optimizer.learning_rate",
    *("trainer.devices", "trainer.precision"),
)
_LATER_STAGE = (*_RUN, "init_from", "epochs", "data.paths", "data.validation_paths", *_TRAINING, "lora.rank")
_SAMPLING = ("sampling.max_new_tokens", "sampling.temperature", "sampling.top_k", "sampling.top_p", "sampling.seed")
_CORPUS = ("corpus.path", "corpus.text_field", "corpus.split", "corpus.validation_fraction", "output", "overwrite")

COMMANDS = {
    "quickstart": Command(
        QuickstartConfig,
        "lit_llm.quickstart.run:quickstart",
        "every stage in a few minutes",
        example="--minutes 4",
    ),
    "quickstart_chat": Command(
        QuickstartChatConfig,
        "lit_llm.quickstart.chat:quickstart_chat",
        "a small chat model before and after LoRA and DPO",
        example="--minutes 12",
    ),
    "fetch_model": Command(
        FetchModelConfig,
        "lit_llm.stages.fetch_model:fetch_model",
        "a small model that answers, to try everything on",
        show_fetched,
        words="names",
        example="smollm2-135m-instruct --output checkpoints/smollm2",
    ),
    "clean_data": Command(
        RecipeConfig,
        "lit_llm.stages.clean_data:clean_data",
        "a clean corpus from raw sources",
        show_corpus,
        everyday=("sources", "steps", "output", "num_workers", "memory_gib", "part_mib", "keep", "overwrite"),
        example='--config experiments/configs/data/web.yaml --sources \'[{"path": "crawl/*.warc.gz"}]\' \\\n'
        "    --output checkpoints/my/corpus",
    ),
    "train_classifier": Command(
        ClassifierConfig,
        "lit_llm.stages.classifier:train_classifier",
        "a classifier of quality from two corpora, for clean_data",
        show_classifier,
        everyday=(
            *("positives.path", "positives.text_field", "negatives.path", "negatives.text_field", "output"),
            *("max_documents", "ngrams", "epochs", "held_out", "seed", "overwrite"),
        ),
        example="--positives.path 'wiki/*.parquet' --negatives.path 'crawl/*.warc.gz' \\\n"
        "    --output checkpoints/my/classifier",
    ),
    "contamination": Command(
        ContaminationConfig,
        "lit_llm.stages.contamination:contamination",
        "which rows of evaluations a corpus has",
        show_contamination,
        words="files",
        everyday=(
            *("files", "fields", "n", "short", "min_words", "corpus.path", "corpus.text_field", "corpus.id_field"),
            *("examples", "num_workers", "output", "overwrite"),
        ),
        example="gsm8k_test.jsonl 'mmlu/test/*.csv' --corpus.path checkpoints/my/corpus --output found.json",
    ),
    "plant_canaries": Command(
        CanariesConfig,
        "lit_llm.stages.plant_canaries:plant_canaries",
        "secrets for training data, to see what is learned by heart",
        show_canaries,
        example="--repeats '[1,10,100]' --count 5 --output checkpoints/my/canaries",
    ),
    "train_tokenizer": Command(
        TokenizerTrainingConfig,
        "lit_llm.stages.tokenizer:train_tokenizer",
        "a tokenizer from text",
        show_tokenizer,
        everyday=("kind", "vocab_size", *_CORPUS),
        example="--corpus.path 'texts/*.txt' --vocab_size 8192 --output checkpoints/my/tokenizer",
    ),
    "evaluate_tokenizer": Command(
        TokenizerEvaluationConfig,
        "lit_llm.stages.evaluate_tokenizer:evaluate_tokenizer",
        "how short a tokenizer makes texts",
        show_tokenizer_evaluation,
        example="--tokenizer checkpoints/my/tokenizer --against '[gpt2]' --texts '[held_out.txt]'",
    ),
    "prepare_data": Command(
        PrepareConfig,
        "lit_llm.stages.prepare:prepare_data",
        "text into shards",
        show_shards,
        everyday=("tokenizer", "num_workers", *_CORPUS),
        example="--corpus.path 'texts/*.txt' --tokenizer checkpoints/my/tokenizer \\\n"
        "    --output checkpoints/my/shards",
    ),
    "inspect_data": Command(
        InspectConfig,
        "lit_llm.stages.inspect_data:inspect_data",
        "text and origin of what a step has read",
        show_windows,
        example="--run checkpoints/pretrain --step 500 --row 3",
    ),
    "plan": Command(
        PlanConfig,
        "lit_llm.cli.plan:plan",
        "memory, time and cost of a run before it is begun",
        everyday=(
            *("gpu", "num_gpus", "price", "what_if", "scaling", "fit", "serve"),
            *("model.preset", "model.vocab_size", "model.num_layers"),
            *("model.hidden_size", "model.num_heads", "data.paths", "data.sequence_length", "data.batch_size"),
            *("optimizer.name", "trainer.max_steps", "trainer.precision"),
        ),
        example="--model.preset llama3.2-1b --gpu H100 --num_gpus 8 --data.batch_size 256 \\\n"
        "    --data.sequence_length 4096 --trainer.max_steps 20000",
    ),
    "pretrain": Command(
        PretrainConfig,
        "lit_llm.stages.pretrain:pretrain",
        "a decoder from shards",
        show_run,
        everyday=(
            *_RUN,
            *("model.preset", "model.num_layers", "model.hidden_size", "model.num_heads", "data.paths"),
            *_TRAINING,
            *("optimizer.name", "trainer.max_steps"),
        ),
        example="--data.paths '[checkpoints/my/shards]' --model.preset modern-10m \\\n    --trainer.max_steps 2000",
    ),
    "sft": Command(
        SFTConfig,
        "lit_llm.stages.sft:sft",
        "fine-tuning on conversations",
        show_run,
        everyday=(*_LATER_STAGE, "data.packing", "data.add_chat_tokens"),
        example="--init_from checkpoints/pretrain --data.paths '[instructions.json]' --epochs 3",
    ),
    "reward": Command(
        RewardConfig,
        "lit_llm.stages.reward:reward",
        "a reward model from preferences",
        show_run,
        everyday=(*_LATER_STAGE, "centring"),
        example="--init_from checkpoints/sft --data.paths '[preferences.json]' --epochs 1",
    ),
    "dpo": Command(
        DPOConfig,
        "lit_llm.stages.dpo:dpo",
        "alignment with preferences",
        show_run,
        everyday=(*_LATER_STAGE, "loss", "beta", "reference_model"),
        example="--init_from checkpoints/sft --data.paths '[preferences.json]' --epochs 1",
    ),
    "ppo": Command(
        PPOConfig,
        "lit_llm.stages.ppo:ppo",
        "alignment with a reward: PPO or GRPO",
        show_run,
        everyday=(
            *_RUN,
            *("init_from", "algorithm", "rewards", "group_size", "max_new_tokens", "temperature", "kl_coefficient"),
            *("data.paths", "data.sequence_length", "data.batch_size"),
            *("optimizer.learning_rate", "trainer.max_steps", "trainer.precision", "lora.rank"),
        ),
        example="--init_from checkpoints/sft --data.paths '[prompts.jsonl]' \\\n"
        "    --rewards '[checkpoints/reward]' --trainer.max_steps 200",
    ),
    "generate": Command(
        GenerateConfig,
        "lit_llm.cli.generate:generate",
        "text from a model",
        everyday=(
            *("model", "dtype", "quantize", "prompts", "prompts_file", "num_samples", "stream", "batch_size"),
            *("num_beams", "json_schema", *_SAMPLING),
        ),
        example="--model checkpoints/pretrain --prompts '[\"def main(\"]' --sampling.temperature 0.7",
    ),
    "evaluate": Command(
        EvaluateConfig,
        "lit_llm.stages.evaluate:evaluate",
        "how good a model is",
        show_evaluation,
        everyday=(
            *("model", "texts", "shards", "answers", "preferences", "reference", "battery", "battery_data"),
            *("compare_to", "tasks", "limit", "context", "stride"),
            *("max_documents", "batch_size", "dtype", "quantize", "output", "overwrite"),
        ),
        example="--model checkpoints/pretrain --texts '[held_out/*.txt]' --overwrite true",
    ),
    "judge": Command(
        JudgeConfig,
        "lit_llm.stages.judge:judge",
        "models compared by a judge of their answers",
        show_judgement,
        everyday=(
            *("models", "prompts", "max_prompts", "judge.url", "judge.model", "judge.api_key_file", "judge.at_once"),
            *("mode", "baseline", "rubric", "labels", "repeat", "sampling.max_new_tokens", "sampling.temperature"),
            *("output", "overwrite"),
        ),
        example="--models '{sft: checkpoints/sft, dpo: checkpoints/dpo}' --prompts '[prompts.jsonl]' \\\n"
        "    --judge.url http://127.0.0.1:8000",
    ),
    "safety": Command(
        SafetyConfig,
        "lit_llm.stages.safety:safety",
        "what a model may do harm with",
        show_safety,
        everyday=(
            *("model", "checks", "shards", "canaries", "evaluations", "requests", "preferences", "limit"),
            *("max_new_tokens", "batch_size", "dtype", "quantize", "output", "overwrite"),
        ),
        example="--model checkpoints/sft --checks '[refusals,injection,bias]'",
    ),
    "chat": Command(
        ChatConfig,
        "lit_llm.cli.chat:chat",
        "talk with a model in the terminal",
        everyday=("model", "system", "dtype", "quantize", "compile", *_SAMPLING),
        example="--model checkpoints/sft --system 'Be brief.'",
    ),
    "serve": Command(
        ServeConfig,
        "lit_llm.cli.serve:serve",
        "OpenAI's HTTP interface and a chat page",
        everyday=(
            *("model", "host", "port", "name", "max_batch", "max_length", "default_max_tokens", "dtype", "quantize"),
            *("models", "adapters", "api_key_file", "allowed_hosts"),
        ),
        example="--model checkpoints/sft --port 8000 --quantize int8",
    ),
    "export": Command(
        ExportConfig,
        "lit_llm.stages.export:export",
        "a folder for transformers, or GGUF",
        show_export,
        example="--checkpoint checkpoints/pretrain --output my_model --dtype bfloat16",
    ),
    "find_rate": Command(
        FindRateConfig,
        "lit_llm.cli.find_rate:find_rate",
        "learning rates compared, a few steps each",
        rest="options",
        example="--stage sft --rates '[1e-4,3e-4,1e-3]' -- --init_from checkpoints/pretrain \\\n"
        "    --data.paths '[instructions.json]'",
    ),
    "scaling": Command(
        ScalingConfig,
        "lit_llm.cli.scaling:scaling",
        "how large a model to train, from a grid of small ones",
        rest="options",
        everyday=(
            *("run", "output", "minutes", "budgets", "sizes", "points", "seeds", "num_workers", "dry_run"),
            *("hours", "gpu", "num_gpus"),
        ),
        example="--minutes 20 --hours 24 -- --model.preset modern-1m \\\n    --data.paths '[checkpoints/my/shards]'",
    ),
    "compare": Command(
        CompareConfig,
        "lit_llm.stages.compare:compare",
        "the curves of runs together, and what differs",
        show_comparison,
        words="runs",
        example="checkpoints/one checkpoints/other",
    ),
}


def run_command(name: str, arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """Run a command with options from YAML and the command line; see `lit_llm.cli.parsing.main`.

    Args:
        name: a key of `COMMANDS`.
        arguments: the command line; None takes it from the process.
        program: what --help calls it; None: the name of the script.
    """
    with ends_with_its_reader():
        _run_command(name, sys.argv[1:] if arguments is None else arguments, program)


def _run_command(name: str, given: Sequence[str], program: str | None) -> None:
    command = COMMANDS[name]
    if command.words is not None and not given:
        called = program or f"{name}.py"
        print(f"usage: {called} {command.example}; {called} --help shows the options", file=sys.stderr)
        raise SystemExit(2)
    words = command.as_options(given)
    main(command.config, command.run, words, program, ShortHelp(command.everyday, command.example))


def console() -> None:
    """The console command `lit-llm NAME ...`; a hyphen in a name is as good as an underscore."""
    words = sys.argv[1:]
    name = words[0].replace("-", "_") if words else ""
    if name in COMMANDS:
        run_command(name, words[1:], program=f"lit-llm {words[0]}")
        return
    asked = bool(words) and words[0] in ("-h", "--help", "--help-all")
    lines = ["usage: lit-llm COMMAND [options]; lit-llm COMMAND --help shows the options", ""]
    if words and not asked:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        lines.insert(0, f"error: there is no command {words[0]}{f'; the nearest is {near[0]}' if near else ''}")
    lines += [f"  {name:16} {command.about}" for name, command in COMMANDS.items()]
    with ends_with_its_reader():
        print("\n".join(lines), file=sys.stdout if asked else sys.stderr)
    raise SystemExit(0 if asked else 2)
