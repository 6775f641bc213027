"""The quickstart's stages side by side: what each model makes of requests that none of them has seen."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lit_llm.config import STAGES, QuickstartConfig
from lit_llm.config.files import replace_file
from lit_llm.config.notices import with_pictures
from lit_llm.quickstart.later_stages import SAMPLING, Files, device, dpo_run, read_rows, stage_folder

if TYPE_CHECKING:
    from torch import Tensor

REQUESTS = 48
"""Number of held-out requests that each model answers."""
SHOWN = 3
"""Number of requests whose answers are shown."""
TITLE = "On held-out requests"
HEADER = ("stage", "answers that parse", "answer loss", "tokens", "reward", "pairs ranked rightly", "DPO margin")


@dataclass
class StageResult:
    """What is measured of one stage; a field is None where it does not apply.

    Attributes:
        stage: its name.
        answers: what its model writes, for each request.
        parse_rate: share of them that parse.
        loss: nats per token of the true functions.
        tokens: mean length of the answers.
        reward: mean of what the reward model gives the answers.
        accuracy: share of held-out pairs that the reward model ranks rightly, with its 95% interval.
        margin: mean difference of DPO's implicit rewards on held-out pairs.
    """

    stage: str
    answers: list[str] = field(default_factory=list)
    parse_rate: float | None = None
    loss: float | None = None
    tokens: float | None = None
    reward: float | None = None
    accuracy: tuple[float, float, float] | None = None
    margin: float | None = None

    def row(self) -> list[str]:
        """Write the stage's row of the table under `HEADER`."""
        accuracy = ""
        if self.accuracy is not None:
            accuracy = "{:.0%} ({:.0%} to {:.0%})".format(*self.accuracy)
        return [
            self.stage,
            "" if self.parse_rate is None else f"{self.parse_rate:.0%}",
            "" if self.loss is None else f"{self.loss:.3f}",
            "" if self.tokens is None else f"{self.tokens:.0f}",
            "" if self.reward is None else f"{self.reward:+.2f}",
            accuracy,
            "" if self.margin is None else f"{self.margin:+.2f}",
        ]


def held_out_requests(config: QuickstartConfig) -> list[str]:
    """Choose requests of the validation files, spread evenly over them."""
    rows = read_rows(Files(config.folder).pairs("validation"))
    count = min(REQUESTS, len(rows))
    return [rows[number * len(rows) // count]["messages"][0]["content"] for number in range(count)]


def compare(config: QuickstartConfig) -> list[StageResult]:
    """Measure every finished stage on the same requests, with the same draws, from what the run folder holds."""
    finished = [stage for stage in STAGES if stage_is_finished(config, stage)]
    requests = held_out_requests(config)
    results = [
        StageResult(stage) if stage == "reward" else _language_model(config, stage, requests) for stage in finished
    ]
    if "reward" in finished:
        _add_rewards(config, requests, results)
    if "dpo" in finished:
        results[-1].margin = _margin(config)
    return results


def stage_is_finished(config: QuickstartConfig, stage: str) -> bool:
    """Tell whether the stage has left its model, which is the last thing that it does."""
    return (stage_folder(config, stage) / "model" / "model.safetensors").exists()


def _language_model(config: QuickstartConfig, stage: str, requests: list[str]) -> StageResult:
    from lit_llm.evaluation.held_out import answer_loss, write_answers
    from lit_llm.interop import load_model_folder
    from lit_llm.quickstart.code import parse_rate

    model, tokenizer = load_model_folder(stage_folder(config, stage) / "model", device=device())
    written = write_answers(model, tokenizer, requests, replace(SAMPLING, seed=config.seed))
    answers = [answer.text for answer in written]
    loss = answer_loss(model, tokenizer, Files(config.folder).pairs("validation"))
    tokens = sum(len(answer.ids) for answer in written) / len(written)
    return StageResult(stage, answers, parse_rate(answers), loss, tokens)


def _add_rewards(config: QuickstartConfig, requests: list[str], results: list[StageResult]) -> None:
    from lit_llm.evaluation.held_out import answer_scores, preference_scores
    from lit_llm.interop import load_model_folder
    from lit_llm.objectives import accuracy_interval

    model, tokenizer = load_model_folder(stage_folder(config, "reward") / "model", device=device())
    for result in results:
        if result.stage == "reward":
            chosen, rejected = preference_scores(model, tokenizer, Files(config.folder).corrupted("validation")).T
            right = int((chosen > rejected).sum())
            result.accuracy = (right / len(chosen), *accuracy_interval(right, len(chosen)))
        else:
            result.reward = float(answer_scores(model, tokenizer, requests, result.answers).mean())


def _margin(config: QuickstartConfig) -> float:
    """DPO logs this: beta (log pi(chosen) / pi_ref(chosen) - log pi(rejected) / pi_ref(rejected))."""
    from lit_llm.evaluation.held_out import preference_log_probs
    from lit_llm.interop import load_model_folder

    def log_probs(stage: str) -> Tensor:
        model, tokenizer = load_model_folder(stage_folder(config, stage) / "model", device=device())
        return preference_log_probs(model, tokenizer, Files(config.folder).sampled("validation"))

    chosen, rejected = (log_probs("dpo") - log_probs("sft")).T
    return dpo_run(config, 1).beta * float((chosen - rejected).mean())


def show(config: QuickstartConfig, results: list[StageResult]) -> None:
    """Print the table and a few answers, and put both into the report."""
    from rich.console import Console
    from rich.table import Table

    from lit_llm.evaluation.tables import markdown_table

    rows = [result.row() for result in results]
    table = Table(*HEADER, title=TITLE)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print(table)
    parts = [f"## {TITLE}", markdown_table(HEADER, rows), _explanation(config)]
    for number, request in enumerate(held_out_requests(config)[:SHOWN]):
        texts = [("request", request)]
        texts += [(result.stage, result.answers[number]) for result in results if result.answers]
        for name, text in texts:
            console.rule(name)
            console.print(with_pictures(text), markup=False, highlight=False)
            parts += [f"{name}:", "\n".join("    " + line for line in text.splitlines())]
    console.rule()
    _add_to_report(config.folder / "report.md", "\n\n".join(parts))


def _explanation(config: QuickstartConfig) -> str:
    count = len(read_rows(Files(config.folder).corrupted("validation")))
    return (
        f"{len(held_out_requests(config))} requests from files that no stage has trained on, answered at temperature "
        f"{SAMPLING.temperature} with the same draws. Answer loss is that of the {count} true functions there, in nats "
        "per token; pairs are these and spoiled ones. The margin is between answers of the fine-tuned model that parse "
        "and others that do not."
    )


def _add_to_report(path: Path, section: str) -> None:
    """Put the section at the end of the report, in place of an earlier one."""
    report = path.read_text(encoding="utf-8") if path.exists() else ""
    before = report.partition(f"## {TITLE}")[0].rstrip()
    replace_file(path, f"{before}\n\n{section}\n")
