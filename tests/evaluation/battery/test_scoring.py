"""Log-probabilities of choices: as the harness's own model gives them, with what texts share read once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from conftest import tiny_model
from random_decoder import random_decoder
from tokenizers import processors

from lit_llm.config import UserError
from lit_llm.config.battery import BatteryTask
from lit_llm.evaluation.battery.definition import LocatedTask
from lit_llm.evaluation.battery.questions import Question, questions
from lit_llm.evaluation.battery.reading import QuestionReader
from lit_llm.evaluation.battery.run import Examinee, ask, open_tasks
from lit_llm.evaluation.battery.scoring import ChoiceScorer, Encoded
from lit_llm.interop import save_model_folder
from lit_llm.model import Decoder
from lit_llm.tokenizer import Tokenizer

CONTEXT = 192


@pytest.fixture(scope="module")
def model() -> Decoder:
    return random_decoder(tiny_model("llama-10m", max_position_embeddings=CONTEXT))


@pytest.fixture(scope="module")
def beginning(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of the tiny corpus with the rule that a text begins with <|endoftext|>."""
    own = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.state))
    begin = "<|endoftext|>"
    own.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.special_ids[begin])]
    )
    return Tokenizer(own)


def tasks(folder: Path) -> list[BatteryTask]:
    """Pairs, letters with examples and whole choices, some of whose texts are longer than the context."""
    words = [
        "import os",
        "def f(x):",
        "return x",
        "class A:",
        "self.value = 1",
        "for line in lines:",
        "raise ValueError",
    ]
    pairs = [
        {"sentence_good": f"{a} {b}", "sentence_bad": f"{a} {words[(i + j) % 7]} {b}"}
        for i, a in enumerate(words)
        for j, b in enumerate(words[:2])
    ]
    rows = [{"question": f"{a} then? ", "choices": words[i : i + 3], "answer": i % 3} for i, a in enumerate(words[:5])]
    rows.append({"question": "x = 1\n" * 40, "choices": ["y", "def g(y): return y", "z"], "answer": "C"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        BatteryTask("pairs", "pairs", ["pairs.jsonl"]),
        BatteryTask("letters", "choices", ["rows.jsonl"], shots=2, description="About {subject}.\n\n"),
        BatteryTask("whole", "choices", ["rows.jsonl"], score="choice", prompt="{question}"),
    ]


@pytest.mark.parametrize("begins", [True, False])
def test_log_probabilities_are_the_harness_own(
    begins: bool, model: Decoder, beginning: Tokenizer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install 'lit-llm[eval]'")
    pytest.importorskip("transformers", reason="transformers is not installed; pip install 'lit-llm[test]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    used = beginning if begins else tokenizer
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), used)
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "model" / "tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    reader = QuestionReader(used, "auto" if begins else "never")
    harness = HFLM(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tokenizer=theirs, batch_size=4)
    for task in tasks(tmp_path):
        (asked,) = open_tasks([LocatedTask(task, (tmp_path / task.paths[0],), tmp_path)], None)
        arguments = [
            (question.context(task), f"{task.delimiter}{choice}")
            for question in asked.questions
            for choice in question.choices
        ]
        requests = [Instance("loglikelihood", {}, each, i, (task.name, i, 1)) for i, each in enumerate(arguments)]
        expected = [value for value, _ in harness.loglikelihood(requests, disable_tqdm=True)]
        for batch_size in (1, 3, 64):
            answers = ask(asked, Examinee(model, reader, batch_size=batch_size))
            found = [value for question in asked.questions for value in answers[question.id]["log_probs"]]
            assert found == pytest.approx(expected, abs=1e-4), (task.name, batch_size)
            # those that do not fit are read without their left end
            cut = sum(answer["cut"] for answer in answers.values())
            assert cut == {"pairs": 0, "letters": 3, "whole": 3}[task.name]


@pytest.mark.parametrize(
    "options",
    [{"sliding_window": 6}, {"position": "learned"}, {"token_smear": True}, {"value_embeddings": True}],
    ids=lambda options: next(iter(options)),
)
def test_what_is_shared_changes_nothing(options: dict[str, Any]) -> None:
    """Each text alone in one pass gives the same, whatever the model keeps of what it has read."""
    own = random_decoder(tiny_model("llama-10m", max_position_embeddings=CONTEXT, **options))
    draws = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(own.config.vocab_size or 0, (count,), generator=draws).tolist()

    shared = ids(30)
    asked = [
        Encoded([*shared, *ids(number)], [[*(common := ids(2)), *ids(number % 4)], [*common, *ids(3)], ids(1)])
        for number in range(9)
    ]
    found = dict(entry for several in ChoiceScorer(own, 2).score(asked) for entry in several)
    for number, each in enumerate(asked):
        for value, choice in zip(found[number], each.choices, strict=True):
            text = torch.tensor([*each.context, *choice])
            with torch.inference_mode():
                logits = own(text[None, :-1])[0, len(each.context) - 1 :].log_softmax(-1)
            expected = logits.gather(1, torch.tensor(choice)[:, None]).sum()
            assert value == pytest.approx(float(expected), abs=2e-4)


def test_what_texts_share_is_read_once(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    embed = type(model.embedding).forward
    monkeypatch.setattr(
        type(model.embedding), "forward", lambda self, ids: (read.append(ids.numel()), embed(self, ids))[1]
    )
    prefix = list(range(40, 80))
    asked = [Encoded([*prefix, number], [[1], [2], [3], [4, 5]]) for number in range(10)]
    states: list[int] = []
    logits = model.logits
    monkeypatch.setattr(model, "logits", lambda hidden: (states.append(len(hidden)), logits(hidden))[1])
    list(ChoiceScorer(model, 4).score(asked))
    # 40 of the prefix, then one of each question, and one of each choice of two tokens
    assert sum(read) == 40 + 10 + 10
    assert sum(states) == 10 + 10


def test_impossible_choices_are_refused(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a choice of 193 tokens is longer than the model's context of 192"):
        list(ChoiceScorer(model, 1).score([Encoded([1], [[2] * 193])]))
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a b", "choices": ["", "x"], "answer": 0}\n')
    task = BatteryTask("own", "own", ["rows.jsonl"])
    with pytest.raises(UserError, match="line 1: choices must be a list of texts that are not empty"):
        questions(LocatedTask(task, (tmp_path / "rows.jsonl",), tmp_path), None)
    broken = random_decoder(tiny_model("llama-10m"))
    broken.embedding.weight.data[3] = float("nan")
    with pytest.raises(UserError, match="predictions are not finite"):
        list(ChoiceScorer(broken, 1).score([Encoded([3], [[1], [2]])]))


def test_metrics_are_those_of_a_task_of_the_harness(model: Decoder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Prompts, too: MMLU's template with examples from a file of their own, and ARC's with whole choices."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install 'lit-llm[eval]'")
    from lit_llm.evaluation.battery.run import result_of
    from lit_llm.evaluation.harness import run_tasks

    words = ["os", "sys", "def", "return", "class", "import", "self", "None", "True", "lambda", "while", "yield"]
    rows = [
        {"question": f"what is {w}? ", "choices": [words[(i * k) % 12] + " is" for k in (1, 5, 7, 11)], "answer": i % 4}
        for i, w in enumerate(words)
    ]
    for name, part in (("py_test", rows[2:]), ("py_dev", rows[:2])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    head = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path}/py_test.jsonl, dev: {tmp_path}/py_dev.jsonl}}}}
test_split: test
fewshot_split: dev
fewshot_config: {{sampler: first_n}}
num_fewshot: 2
output_type: multiple_choice
doc_to_target: answer
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
    texts = {
        "lettered": 'description: "About {{\\"py\\"}}.\\n\\n"\n'
        'doc_to_text: "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\n'
        'D. {{choices[3]}}\\nAnswer:"\ndoc_to_choice: ["A", "B", "C", "D"]\n',
        "whole": 'doc_to_text: "Question: {{question.strip()}}\\nAnswer:"\ndoc_to_choice: "{{choices}}"\n',
    }
    (tmp_path / "tasks").mkdir()
    for name, text in texts.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(f"task: {name}\n{text}{head}")
    expected = run_tasks(model, tokenizer, list(texts), tasks_folder=tmp_path / "tasks")
    made: dict[str, dict[str, Any]] = {
        "lettered": {"description": "About {subject}.\n\n"},
        "whole": {"score": "choice"},
    }
    for name, own in made.items():
        task = BatteryTask(name, "choices", ["py_test.jsonl"], shots=2, shots_path="{part}_dev.jsonl", **own)
        (asked,) = open_tasks([LocatedTask(task, (tmp_path / "py_test.jsonl",), tmp_path)], None)
        result = result_of(asked, ask(asked, Examinee(model, QuestionReader(tokenizer))))
        found = {result["metric"]: result["accuracy"]} | {
            key: value["accuracy"] for key, value in result["more"].items()
        }
        assert found["acc"] == pytest.approx(expected[name]["acc"])
        assert 0 < found["acc"] < 1
        if name == "whole":
            assert found["acc_norm"] == pytest.approx(expected[name]["acc_norm"])


def test_questions_are_put_as_the_form_says(tmp_path: Path) -> None:
    (tmp_path / "a_test.csv").write_text('"Is, it?",yes,no,B\n"And ""this""?",left,right,A\n')
    (tmp_path / "a_dev.csv").write_text("Was it?,yes,no,A\n")
    task = BatteryTask(
        "mmlu", "choices", ["*.csv"], shots=1, shots_path="{part}_dev.csv", description="On {subject}.\n\n"
    )
    first, second = questions(LocatedTask(task, (tmp_path / "a_test.csv",), tmp_path), None)
    solved = "On a.\n\nWas it?\nA. yes\nB. no\nAnswer: A\n\n"
    assert first.context(task) == f"{solved}Is, it?\nA. yes\nB. no\nAnswer:"
    assert second.context(task) == f'{solved}And "this"?\nA. left\nB. right\nAnswer:'
    assert [each.gold for each in (first, second)] == [1, 0] and first.choices == ("A", "B")
    assert [turn.role for turn in first.turns()] == ["user", "assistant", "user"]
    assert [turn.content for turn in first.turns()][1] == "A"
    # without a file of examples, the first rows are taken and not asked
    own = BatteryTask("mmlu", "choices", ["*.csv"], shots=1, score="choice")
    (only,) = questions(LocatedTask(own, (tmp_path / "a_test.csv",), tmp_path), None)
    assert only.context(own) == 'Question: Is, it?\nAnswer: no\n\nQuestion: And "this"?\nAnswer:'
    assert isinstance(only, Question) and only.choices == ("left", "right") and only.weights == (4, 5)
