"""Before and after: what the models of the chat quickstart make of rows that none of them was trained on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lit_llm.config import QuickstartChatConfig, SamplingConfig
from lit_llm.config.files import replace_file, write_json
from lit_llm.config.notices import with_pictures
from lit_llm.quickstart.chat_rows import ChatFiles, held_out_prompts, most_tokens

SHOWN = 4
"""Number of held-out prompts that are answered."""
SAMPLING = SamplingConfig(max_new_tokens=96, temperature=0.0, truncate_prompt=True)
HEADER = ("model", "loss of held-out answers", "preferred answer likelier", "pairs", "it became likelier")
NAMES = {"before": "as it came", "sft": "after LoRA on conversations", "dpo": "after DPO on preferences"}
"""What the report calls each measurement, in order."""


@dataclass
class Measurement:
    """What is measured of one model.

    Attributes:
        loss: nats per token of the answers of held-out conversations.
        margins: log-probability of the preferred answer of each held-out pair, less that of the other one, in nats.
        answers: what the model writes to the first held-out prompts.
    """

    loss: float
    margins: list[float]
    answers: list[str]

    def row(self, name: str, before: Measurement | None) -> list[str]:
        """Write a row of the table under `HEADER`.

        Args:
            name: of the model.
            before: of the model that it was made from.
        """
        pairs = len(self.margins)
        accuracy = _share(sum(margin > 0 for margin in self.margins), pairs)
        became = ""
        if before is not None:
            became = _share(sum(now > then for now, then in zip(self.margins, before.margins, strict=True)), pairs)
        return [name, f"{self.loss:.3f}", accuracy, f"{pairs}", became]


def _share(count: int, pairs: int) -> str:
    """Write a share of the pairs with its 95% interval."""
    from lit_llm.objectives import accuracy_interval

    return "{:.0%} ({:.0%} to {:.0%})".format(count / pairs, *accuracy_interval(count, pairs))


def measured(config: QuickstartChatConfig, stage: str, model: Path) -> Measurement:
    """Measure a model, or read what was measured of it before.

    Args:
        config: of the quickstart.
        stage: a key of `NAMES`.
        model: model folder or GGUF file.
    """
    path = config.folder / "measured" / f"{stage}.json"
    if path.exists():
        return Measurement(**json.loads(path.read_text(encoding="utf-8")))
    found = _measure(config, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(found))
    return found


def _measure(config: QuickstartChatConfig, folder: Path) -> Measurement:
    from lit_llm.evaluation.held_out import answer_loss, preference_log_probs
    from lit_llm.generation.complete import complete
    from lit_llm.interop import load_model_folder
    from lit_llm.quickstart.later_stages import device
    from lit_llm.tokenizer.chat import ChatFormat

    files = ChatFiles(config.folder)
    model, tokenizer = load_model_folder(folder, device=device())
    loss = answer_loss(model, tokenizer, files.conversations("validation"))
    chosen, rejected = preference_log_probs(model, tokenizer, files.preferences("validation")).T
    chat = ChatFormat(tokenizer)
    prompts = [chat.render_prompt(prompt) for prompt in held_out_prompts(files.conversations("validation"), SHOWN)]
    written = complete(model, prompts, SAMPLING, tokenizer=tokenizer, stop_tokens=chat.stop_ids)
    return Measurement(loss, (chosen - rejected).tolist(), [answer.text for answer in written])


def write_chat_report(config: QuickstartChatConfig, found: dict[str, Measurement], minutes: float) -> None:
    """Print the table and the answers, and write report.md and report.html.

    Args:
        config: of the quickstart.
        found: what was measured, by the keys of `NAMES`.
        minutes: what this run has taken.
    """
    from rich.console import Console
    from rich.table import Table

    from lit_llm.evaluation.pages import from_markdown, heading, page
    from lit_llm.evaluation.tables import markdown_table

    made_from = [None, *found.values()]
    rows = [each.row(NAMES[stage], start) for (stage, each), start in zip(found.items(), made_from, strict=False)]
    table = Table(*HEADER)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    sections = {
        "Before and after": "\n\n".join([markdown_table(HEADER, rows), _explanation(config)]),
        "How it was made": "\n".join(f"- {line}" for line in _facts(config, minutes)),
        "Answers": _answers(config, found),
    }
    console.print(with_pictures(sections["Answers"]), markup=False, highlight=False)
    title = f"{Path(config.start).name}, before and after"
    text = "\n\n".join([f"# {title}", *(part for name, body in sections.items() for part in (f"## {name}", body))])
    replace_file(config.folder / "report.md", text + "\n")
    parts = [part for name, body in sections.items() for part in (heading(name), from_markdown(body))]
    replace_file(config.folder / "report.html", page(title, parts))
    print(f"report   {config.folder / 'report.html'} (and report.md)")


def _explanation(config: QuickstartChatConfig) -> str:
    files = ChatFiles(config.folder)
    count = sum(1 for _ in files.conversations("validation").open(encoding="utf-8"))
    return (
        f"On {count} conversations and as many pairs at most that no stage was trained on. The loss is in nats per "
        "token of the answers, ends of turns included. A pair counts as right where the model gives the preferred "
        "answer the higher log-probability; the last column counts the pairs in which training has raised that of the "
        "preferred answer against the other one, which for DPO is the accuracy of its implicit reward. In brackets "
        "stands the 95% interval: with so few rows, only large differences mean something."
    )


def _facts(config: QuickstartChatConfig, minutes: float) -> list[str]:
    import yaml

    lines = [f"started from {config.start}"]
    source = config.instructions or "functions of the Python standard library, asked for by their docstrings"
    lines.append(f"conversations: {source}")
    source = config.preferences or "the same functions, preferred to spoiled ones"
    lines.append(f"preferences: {source}; conversations of more than {most_tokens(config)} tokens are cut off")
    for stage in ("sft", "dpo"):
        path = config.folder / stage / "config.yaml"
        if path.exists():
            run = yaml.safe_load(path.read_text(encoding="utf-8"))
            lines.append(
                f"{stage}: {run['trainer']['max_steps']} steps of {run['data']['batch_size']} samples, LoRA of rank "
                f"{run['lora']['rank']}, learning rate {run['optimizer']['learning_rate']:g}, "
                f"{run['trainer']['precision']}; its own report is {stage}/report.html"
            )
    return [*lines, f"{minutes:.1f} minutes in this run"]


def _answers(config: QuickstartChatConfig, found: dict[str, Measurement]) -> str:
    """Show the prompts and what each model answers, drawn greedily, as indented blocks."""
    prompts = held_out_prompts(ChatFiles(config.folder).conversations("validation"), SHOWN)
    parts = []
    for number, prompt in enumerate(prompts):
        parts += ["the user:", _indented(prompt[-1].content)]
        for stage, each in found.items():
            parts += [f"{NAMES[stage]}:", _indented(each.answers[number])]
    return "\n\n".join(parts)


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.split("\n") if line.strip()) or "    (nothing)"
