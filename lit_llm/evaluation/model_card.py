"""README.md of a model folder: a model card in the form of the Hugging Face Hub, from what a run knows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from lit_llm.config import (
    DPOConfig,
    ModelConfig,
    PPOConfig,
    PretrainConfig,
    RewardConfig,
    RunConfig,
    SFTConfig,
    flatten,
    to_plain,
)
from lit_llm.config.files import replace_file
from lit_llm.evaluation.run_report import DATA_HEADER, duration
from lit_llm.evaluation.tables import markdown_table
from lit_llm.interop import gguf_license, is_gguf
from lit_llm.planning import count_parameters
from lit_llm.training.loggers import display_name, stage_of
from lit_llm.training.run import RunResult
from lit_llm.training.run_facts import DataFacts

CARD = "README.md"
UNMEASURED = "Nothing else has been measured of this model, its safety least of all."
"""The end of a card; `lit_llm.evaluation.safety.report` puts what it has measured in its place."""
_STAGES = {
    "pretrain": "pretrained on text to predict the next token",
    "sft": "fine-tuned on conversations",
    "reward": "trained to score answers by which of two is preferred",
    "dpo": "aligned with preferences by direct preference optimization",
    "ppo": "aligned with a reward by reinforcement learning",
}
_RECIPE = (
    *("trainer.max_steps", "data.batch_size", "data.sequence_length", "optimizer.name", "optimizer.learning_rate"),
    *("optimizer.weight_decay", "schedule.name", "schedule.warmup_steps", "trainer.precision", "lora.rank", "loss"),
    *("beta", "algorithm", "seed"),
)
"""Options that a card names; a stage has only some of them."""
_HUB_DATA = re.compile(r"(?:^|, )hf:([\w.\-]+(?:/[\w.\-]+)?)")
_HUB_CACHE = re.compile(r"models--([\w.\-]+?)--([\w.\-]+)")


@dataclass
class ModelCard:
    """Everything that a card says of a model.

    Attributes:
        name: of the model.
        model: its configuration.
        stage: the stage that it comes from, as "sft"; None where that is not known.
        options: those of its run, with dotted names.
        data: what it was trained and measured on.
        results: numbers by the name of their curve, as val/loss.
        facts: more of what is told in the table of its training, as (what, value).
        license: as the Hub names it, or None.
        start: model folder that the training started from, or None.
        quantization: how its weights are rounded, or None.
    """

    name: str
    model: ModelConfig
    stage: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    data: Sequence[DataFacts] = ()
    results: Mapping[str, float] = field(default_factory=dict)
    facts: Sequence[tuple[str, str]] = ()
    license: str | None = None
    start: str | None = None
    quantization: str | None = None


def write_run_card(config: RunConfig, result: RunResult) -> None:
    """Write the card of a finished run into its model folder."""
    known = result.facts
    facts = [
        ("steps", f"{result.steps:,}"),
        ("tokens read", f"{result.tokens:,}"),
        ("time", f"{duration(known.seconds)} on {known.device}"),
    ]
    start = config.init_from
    card = ModelCard(
        display_name(config),
        config.model,
        stage_of(config),
        flatten(to_plain(config)),
        known.data,
        result.metrics,
        facts,
        start=start,
        license=None if start is None else license_of(Path(start)),
    )
    for folder in (result.model_folder, config.folder / "adapter"):
        if folder.is_dir():
            write_card(card, folder)


def stage_of_options(options: Mapping[str, Any]) -> str:
    """Tell the stage of a run by its options: the stage whose options are most like them."""
    kinds = (PretrainConfig, SFTConfig, RewardConfig, DPOConfig, PPOConfig)
    names = {kind: {each.name for each in fields(kind)} for kind in kinds}
    return stage_of(min(kinds, key=lambda kind: len(names[kind] ^ options.keys()))())


def license_of(folder: Path) -> str | None:
    """Read the license that the card of a model folder, or a GGUF file, names; None if it names none."""
    if is_gguf(folder):
        name = gguf_license(folder)
    else:
        name = front_matter(folder).get("license")
    return name if isinstance(name, str) else None


def write_card(card: ModelCard, folder: Path) -> None:
    """Write README.md into a folder with a model, whose config.json says which program reads it."""
    replace_file(folder / CARD, render(card, folder))


def front_matter(folder: Path) -> dict[str, Any]:
    """Read the YAML in the card of a model folder; an empty dict if there is no card, or its YAML is broken."""
    path = folder / CARD
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = re.match(r"---\n(.*?)\n---(?:\n|$)", text, re.DOTALL)
        values = yaml.safe_load(found[1]) if found else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def render(card: ModelCard, folder: Path) -> str:
    """Write the card as Markdown with YAML above it.

    Args:
        card: what is said.
        folder: holds the model, or the GGUF file, already.
    """
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    is_adapter = (folder / "adapter_config.json").is_file()
    parts = [
        "---\n"
        + yaml.safe_dump(_metadata(card, _reader(values, is_adapter, folder)), sort_keys=False, allow_unicode=True)
        + "---",
        f"# {card.name}",
        _introduction(card, is_adapter),
        "## How to use it",
        _usage(card, values, is_adapter, folder),
    ]
    recipe = [(name, _shown(card.options[name])) for name in _RECIPE if card.options.get(name) is not None]
    if card.facts or recipe:
        parts += ["## How it was trained", markdown_table(["what", "value"], [*card.facts, *recipe])]
    if card.data:
        rows = [(each.split, _public(each.where), each.amount, each.digest) for each in card.data]
        parts += ["Data:", markdown_table(DATA_HEADER, rows)]
    results = _results(card)
    if results:
        parts += ["## Results", markdown_table(["measured", "value"], [(n, f"{value:.4f}") for n, value in results])]
    parts.append(UNMEASURED)
    return "\n\n".join(parts) + "\n"


def _results(card: ModelCard) -> list[tuple[str, float]]:
    names = [name for name in card.results if name.startswith(("val/", "test/")) and math.isfinite(card.results[name])]
    return [(name, card.results[name]) for name in sorted(names, key=lambda name: (not name.endswith("/loss"), name))]


def _metadata(card: ModelCard, reads: str) -> dict[str, Any]:
    """Collect the values of the YAML under the keys that the Hub knows."""
    task = "text-classification" if card.model.output == "score" else "text-generation"
    found: dict[str, Any] = {
        "library_name": reads,
        "pipeline_tag": task,
        "tags": list(dict.fromkeys(["lit_llm", "pytorch-lightning", *([card.stage] if card.stage else [])])),
    }
    if card.license is not None:
        found["license"] = card.license
    base = None if card.start is None else hub_name(card.start)
    if base is not None:
        found["base_model"] = base
    datasets = list(dict.fromkeys(name for each in card.data for name in _HUB_DATA.findall(each.source)))
    if datasets:
        found["datasets"] = datasets
    results = _results(card)
    if results:
        about = {each.split: each for each in card.data}
        found["model-index"] = [
            {"name": card.name, "results": [_result(split, task, results, about) for split in _splits(results)]}
        ]
    return found


def _splits(results: Sequence[tuple[str, float]]) -> list[str]:
    return list(dict.fromkeys(name.partition("/")[0] for name, _ in results))


def _result(
    split: str, task: str, results: Sequence[tuple[str, float]], about: Mapping[str, DataFacts]
) -> dict[str, Any]:
    """Put all numbers of one split into the form of the Hub's model-index."""
    known = about.get("validation" if split == "val" else split)
    hub = [] if known is None else _HUB_DATA.findall(known.source)
    where = "held-out data" if known is None else _public(known.where)
    metrics = [
        {"type": _metric(name), "name": name, "value": round(value, 6)}
        for name, value in results
        if name.startswith(f"{split}/")
    ]
    return {
        "task": {"type": task},
        "dataset": {"type": hub[0] if hub else "private", "name": f"{split} split of {where}"},
        "metrics": metrics,
    }


def _metric(name: str) -> str:
    """Return the Hub's word for a number, from the last part of the number's name."""
    last = name.rpartition("/")[2]
    return "accuracy" if last in ("token_accuracy", "accuracies") else last


def hub_name(place: str) -> str | None:
    """Find the name on the Hub of the model that a folder holds or is made from; None if it has none.

    The name is told by the Hub's cache, whose folders are named after their models, and by the card in the folder.
    """
    cached = _HUB_CACHE.search(place)
    if cached:
        return f"{cached[1]}/{cached[2]}"
    base = front_matter(Path(place)).get("base_model")
    return base if isinstance(base, str) else None


def _public(places: str) -> str:
    """Shorten paths to their last two parts: the folders of this machine are nobody's business on the Hub."""
    return ", ".join(
        place if place.startswith("hf:") else "/".join(Path(place).parts[-2:]).removeprefix("//")
        for place in places.split(", ")
    )


def _reader(values: Mapping[str, Any], is_adapter: bool, folder: Path) -> str:
    """Return the name of the library that reads the folder."""
    if is_adapter:
        return "peft"
    if not any(folder.glob("*.safetensors")):
        for name, reads in (("model.onnx", "onnx"), ("model.pt2", "pytorch")):
            if (folder / name).is_file():
                return reads
    if not values:
        return "gguf"
    is_ours = values.get("model_type") == "lit_llm" and "auto_map" not in values
    return "lit_llm" if is_ours or "quantization" in values else "transformers"


def _introduction(card: ModelCard, is_adapter: bool) -> str:
    model = card.model
    kind = "reward model" if model.output == "score" else "language model"
    text = (
        f"{'An adapter (LoRA) for a' if is_adapter else 'A'} {kind} of {count_parameters(model):,} parameters "
        f"({model.num_layers} layers, width {model.hidden_size}, context {model.max_position_embeddings:,} tokens)"
    )
    if card.stage is not None:
        text += f", {_STAGES[card.stage]}"
    if card.start is not None:
        text += (
            f", {'made from' if card.stage is None else 'starting from'} {hub_name(card.start) or _public(card.start)}"
        )
    if card.quantization is not None:
        text += f". Its weights are rounded to {card.quantization}"
    return text + ". It was made with lit_llm, a PyTorch Lightning codebase for language models."


def _usage(card: ModelCard, values: Mapping[str, Any], is_adapter: bool, folder: Path) -> str:
    """Write the code that reads the model and uses it."""
    reads = _reader(values, is_adapter, folder)
    if reads == "onnx":
        return _python(
            "import onnxruntime",
            "",
            'session = onnxruntime.InferenceSession("model.onnx")',
            "for value in session.get_inputs():  # past_key_values are of length 0 at first, then what present was",
            "    print(value.name, value.type, value.shape)",
        )
    if reads == "pytorch":
        return _python(
            "import torch",
            "",
            'program = torch.export.load("model.pt2").module()',
            "# keys and values of each layer in turn, of length 0 at first, then what the last call returned",
            "logits, past = program(input_ids, attention_mask, past, last_tokens)  # last_tokens may be None",
        )
    if reads == "peft":
        kind = "SequenceClassification" if card.model.output == "score" else "CausalLM"
        more = ", num_labels=1" if card.model.output == "score" else ""
        return _python(
            f"from peft import AutoPeftModelFor{kind}",
            "",
            'name = "."  # this folder, or its name on the Hub',
            f"model = AutoPeftModelFor{kind}.from_pretrained(name{more})",
        )
    if reads == "gguf":
        names = sorted(path.name for path in folder.glob("*.gguf"))
        return f"```bash\nllama-cli -m {names[0] if names else 'model.gguf'} -p 'Once upon a time'\n```"
    if reads == "lit_llm":
        return _usage_of_ours(card)
    trust = ", trust_remote_code=True" if "auto_map" in values else ""
    if card.model.output == "score":
        return _python(
            "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
            "",
            'name = "."  # this folder, or its name on the Hub',
            f"tokenizer = AutoTokenizer.from_pretrained(name{trust})",
            f"model = AutoModelForSequenceClassification.from_pretrained(name{trust})",
            *_chat(),
            "print(model(**inputs).logits.item())  # the higher, the better the answer",
        )
    is_chat = card.stage not in (None, "pretrain")
    inputs = _chat(asks=True) if is_chat else ('inputs = tokenizer("Once upon a time", return_tensors="pt")',)
    return _python(
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'name = "."  # this folder, or its name on the Hub',
        f"tokenizer = AutoTokenizer.from_pretrained(name{trust})",
        f"model = AutoModelForCausalLM.from_pretrained(name{trust})",
        *inputs,
        "print(tokenizer.decode(model.generate(**inputs, max_new_tokens=20)[0]))",
    )


def _chat(asks: bool = False) -> tuple[str, ...]:
    answer = "" if asks else ', {"role": "assistant", "content": "Good morning."}'
    prompt = "add_generation_prompt=True, " if asks else ""
    return (
        f'messages = [{{"role": "user", "content": "Hello"}}{answer}]',
        f'inputs = tokenizer.apply_chat_template(messages, {prompt}return_dict=True, return_tensors="pt")',
    )


def _usage_of_ours(card: ModelCard) -> str:
    if card.model.output == "score":
        return _python(
            "from pathlib import Path",
            "",
            "from lit_llm.interop import load_model_folder",
            "",
            'model, tokenizer = load_model_folder(Path("."))  # this folder',
        )
    return "```bash\nlit-llm generate --model . --prompts '[\"Once upon a time\"]'\n```"


def _python(*lines: str) -> str:
    return "```python\n" + "\n".join(lines) + "\n```"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
