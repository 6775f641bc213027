"""Verdicts on numbers beside those of lm-evaluation-harness's own filters, on the same texts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from lit_llm.config import SandboxConfig
from lit_llm.config.battery import BatteryTask
from lit_llm.evaluation.battery.questions import Question
from lit_llm.evaluation.battery.rows import Row
from lit_llm.evaluation.battery.writing import HARNESS_FILTERS, judged

lm_eval = pytest.importorskip("lm_eval")


def harness_verdicts(texts: list[str], answer: str) -> dict[str, list[bool]]:
    """By the filters and the metric of the harness's own gsm8k.yaml."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    path = Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
    task = yaml.safe_load(path.read_text(encoding="utf-8"))
    (metric,) = task["metric_list"]
    options = {name: metric[name] for name in ("regexes_to_ignore", "ignore_case", "ignore_punctuation")}
    found = {}
    for each in task["filter_list"]:
        first = {name: value for name, value in each["filter"][0].items() if name != "function"}
        taken = next(iter(RegexFilter(**first).apply([texts], [{}])))
        found[each["name"]] = [
            bool(exact_match_hf_evaluate([text], [answer], **options)["exact_match"]) for text in taken
        ]
    return found


def assert_equal_verdicts(texts: Iterable[str], answer: str) -> dict[str, int]:
    """Returns how many are right by each filter."""
    texts = list(texts)
    theirs = harness_verdicts(texts, answer)
    assert theirs.keys() == HARNESS_FILTERS.keys()
    for name, is_right in HARNESS_FILTERS.items():
        ours = [is_right(text, answer) for text in texts]
        assert [text for text, one, other in zip(texts, ours, theirs[name], strict=True) if one != other] == []
    return {name: sum(verdicts) for name, verdicts in theirs.items()}


NUMBERS = [
    *(
        "72",
        "72.",
        "72.0",
        "072",
        "-72",
        "- 72",
        "$72",
        "$-72",
        "-$72",
        "7,2",
        "72,",
        "7",
        "1,234",
        "1234",
        "$1,234.50",
    ),
    *("72%", "1.5", "1,234.", "..", "$", "\u221272", "\u0667\u0662", "", "72\n", "7 2"),
]
TEMPLATES = [
    *("#### {}", "####{}", "#### {} dollars", "So\n#### {}\n\nQuestion: next?\n#### 9", "####  {}", "#### #### {}"),
    *("The answer is {}", "The answer is {}.", "{} apples, and that is all.", "\\boxed{{{}}}", "{}", "x={}=y", "a{}b"),
    *("12 + 60 = {} and 3", "#### none; {}", "#### 72 and #### {}", "It costs $. {}", "{}!\n\n"),
]


@pytest.mark.parametrize("answer", ["12 + 60 = 72\n#### 72", "#### 1,234", "1234", "#### -72", "#### $72.", "72.0"])
def test_crafted_texts(answer: str) -> None:
    right = assert_equal_verdicts(
        (template.format(number) for template, number in itertools.product(TEMPLATES, NUMBERS)), answer
    )
    assert right["strict-match"] > 0 and 0 < right["flexible-extract"] < len(TEMPLATES) * len(NUMBERS)


def test_real_answers(shared_data: Path) -> None:
    """Each with its own answer, that of the next question, and its text cut off at several places."""
    rows = [json.loads(line) for line in (shared_data / "gsm8k_train.jsonl").read_text().splitlines()[:150]]
    right = dict.fromkeys(HARNESS_FILTERS, 0)
    for row, other in itertools.pairwise(rows):
        text = row["answer"]
        texts = [text, other["answer"], text.partition("####")[0], text.replace("#### ", "The answer is "), text[:-1]]
        for name, count in assert_equal_verdicts([*texts, f"{text}.\n\nQuestion:"], row["answer"]).items():
            right[name] += count
    assert all(count >= len(rows) for count in right.values())


def test_what_a_battery_tells() -> None:
    """Ours compares numbers, 72.0 with 72 too; the harness's compare their spelling, and the strict one wants ####."""
    row = Row({"question": "?", "answer": "12 + 60\n#### 72"}, "", "somewhere")
    texts = ["#### 72", "It is 72.", "It is 72.0", "It is 71."]
    task = BatteryTask("one", "answers", ["x"], samples=4, temperature=1.0)
    found = judged(Question("0", row, "", (), "?"), task, texts, SandboxConfig())
    assert (found["score"], found["strict-match"], found["flexible-extract"]) == (3 / 4, 1 / 4, 2 / 4)
