"""Tasks of lm-evaluation-harness: the same numbers and texts as its own model for Hugging Face folders gives."""

from __future__ import annotations

import copy
import importlib
import json
import math
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from conftest import tiny_model
from foreign_tokenizers import save_foreign_tokenizer
from random_decoder import random_decoder
from tokenizers import processors

pytest.importorskip("lm_eval", reason="lm-eval is not installed; pip install 'lit-llm[eval]'")
pytest.importorskip("transformers", reason="transformers is not installed; pip install 'lit-llm[test]'")

from lit_llm.config import SamplingConfig, UserError
from lit_llm.evaluation.harness import run_tasks
from lit_llm.evaluation.harness_model import HarnessModel
from lit_llm.generation import complete
from lit_llm.interop import save_model_folder
from lit_llm.model import Decoder
from lit_llm.tokenizer import ChatFormat, Message, Tokenizer

TASKS = Path(__file__).with_name("tasks")
CONTEXT = 48
METRICS = ["own_choices", "own_letters", "own_words", "own_writing", "own_texts"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not here is not looked for elsewhere."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")


@pytest.fixture(scope="module")
def model() -> Decoder:
    """A small tied Llama."""
    return random_decoder(tiny_model("llama-10m", max_position_embeddings=CONTEXT))


@pytest.fixture(scope="module")
def beginning(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer of the tiny corpus with the rule that a text begins with <|endoftext|>, as its models expect."""
    own = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.state))
    begin = "<|endoftext|>"
    own.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, tokenizer.special_ids[begin])]
    )
    return Tokenizer(own)


@pytest.fixture(scope="module")
def theirs(model: Decoder, beginning: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The harness's own model, of the same weights."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    save_model_folder(folder, model.config, model.state_dict(), beginning)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|endoftext|>", pad_token="<|pad|>"
    )
    assert tokenizer("x").input_ids[0] == beginning.eot_id
    return HFLM(AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer, batch_size=3)


def ours(model: Decoder, tokenizer: Tokenizer, batch_size: int = 3) -> HarnessModel:
    return HarnessModel(model, tokenizer, batch_size=batch_size)


def run(model: Decoder, tokenizer: Tokenizer, *tasks: str, **options: Any) -> dict[str, dict[str, float]]:
    return run_tasks(model, tokenizer, tasks, **{"tasks_folder": TASKS, "seed": 7, **options})


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, argument, number, ("own", number, 1)) for number, argument in enumerate(arguments)]


def their_results(lm: Any, tasks: Sequence[str], num_fewshot: int | None) -> dict[str, dict[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    return simple_evaluate(
        lm,
        tasks=list(tasks),
        task_manager=TaskManager(include_path=TASKS, include_defaults=False),
        num_fewshot=num_fewshot,
        bootstrap_iters=1000,
        random_seed=7,
        numpy_random_seed=7,
        torch_random_seed=7,
        fewshot_random_seed=7,
    )["results"]


@pytest.mark.parametrize("num_fewshot", [None, 2])
def test_metrics_are_the_harness_own(
    model: Decoder, beginning: Tokenizer, theirs: Any, num_fewshot: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    names = ["own_group", "own_words", "own_writing"] if num_fewshot is None else ["own_choices", "own_writing"]
    found = run(model, beginning, *names, num_fewshot=num_fewshot)
    expected = their_results(theirs, names, num_fewshot)
    assert_same_metrics(found, expected)


def assert_same_metrics(found: dict[str, dict[str, float]], expected: dict[str, dict[str, Any]]) -> None:
    """Our metrics are those of the harness, which have other names there."""
    assert found.keys() == expected.keys()
    for task, values in expected.items():
        plain = {}
        for key, value in values.items():
            metric, comma, kind = key.partition(",")
            if comma and value != "N/A":
                name = metric.removesuffix("_stderr") + ("" if kind == "none" else f",{kind}")
                plain[name + ("_stderr" if metric.endswith("_stderr") else "")] = value
        assert plain and found[task] == pytest.approx(plain, abs=1e-4, rel=1e-4), task


@pytest.mark.usefixtures("remote_code_cache")
def test_a_folder_with_code_is_evaluated_alike(
    beginning: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness loads an architecture that transformers lacks, with trust_remote_code."""
    from lm_eval.models.huggingface import HFLM

    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    model = random_decoder(tiny_model("modern-1m", max_position_embeddings=CONTEXT))
    assert save_model_folder(tmp_path / "model", model.config, model.state_dict(), beginning) == "lit_llm"
    theirs = HFLM(str(tmp_path / "model"), trust_remote_code=True, dtype="float32", device="cpu", batch_size=3)
    names = ["own_choices", "own_writing"]
    assert_same_metrics(run(model, beginning, *names), their_results(theirs, names, None))
    asked = requests("loglikelihood", *(("def f(x):", answer) for answer in (" return x", " pass", " A")))
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    assert ours(model, beginning).loglikelihood(asked) == [
        (pytest.approx(value, rel=1e-5), best) for value, best in expected
    ]


def test_log_probabilities_are_the_harness_own(model: Decoder, beginning: Tokenizer, theirs: Any) -> None:
    long = "class Message: " + " ".join(f"def get_{number}(self):" for number in range(20))
    asked = requests(
        "loglikelihood",
        *((context, answer) for context in ("", "def f(x):", long) for answer in (" return x", " pass", " A", " B")),
        ("import os ", "path"),  # the space goes to the answer
        ("", "x"),
    )
    lm = ours(model, beginning)
    found, expected = lm.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert len({round(value, 3) for value, _ in found}) == len(asked)
    assert lm.cut == 4

    # the likeliest token after a context is what "greedy" means
    ids = torch.tensor([[beginning.eot_id, *beginning.encode("def f(x):")]])
    with torch.no_grad():
        likeliest = int(model(ids)[0, -1].argmax())
    (answer,) = lm._loglikelihood_tokens([(None, ids[0].tolist(), [likeliest])])
    assert answer[1]


@pytest.mark.parametrize("form", ["gpt2", "qwen", "llama3"])
def test_contexts_begin_as_the_harness_has_them(form: str, tmp_path: Path) -> None:
    """With a rule that texts begin with a token, and without one, where it would change every number."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = Tokenizer.load(save_foreign_tokenizer(form, tmp_path / "tokenizer"))
    model = random_decoder(tiny_model("llama-10m", max_position_embeddings=CONTEXT))
    save_model_folder(tmp_path / "model", model.config, model.state_dict(), tokenizer, form="huggingface")
    own = AutoTokenizer.from_pretrained(tmp_path / "model", pad_token="</s>")
    theirs = HFLM(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), tokenizer=own, batch_size=4)
    contexts = ("", "def f(x):", "import os ", "class Message: " * 20)
    asked = requests("loglikelihood", *((context, answer) for context in contexts for answer in (" return x", " A")))
    expected = [value for value, _ in theirs.loglikelihood(asked, disable_tqdm=True)]
    found = {rule: HarnessModel(model, tokenizer, begin_token=rule) for rule in ("auto", "always", "never")}
    values = {rule: [value for value, _ in lm.loglikelihood(asked)] for rule, lm in found.items()}
    assert values["auto"] == pytest.approx(expected, rel=1e-4)
    assert values["auto"] == values["always" if form == "llama3" else "never"]
    other = zip(values["always"][2:6], values["never"][2:6], strict=True)  # the first and last two are the same
    assert all(abs(one - two) > 1e-3 for one, two in other)
    texts = requests("generate_until", *((context, {"until": [], "max_gen_toks": 8}) for context in contexts[1:3]))
    assert found["auto"].generate_until(texts) == theirs.generate_until(texts, disable_tqdm=True)
    theirs.add_bos_token = False  # else it predicts the begin token as well
    rolling = requests("loglikelihood_rolling", ("import os\n" * 20,), ("x",))
    assert found["auto"].loglikelihood_rolling(rolling) == pytest.approx(
        theirs.loglikelihood_rolling(rolling, disable_tqdm=True), rel=1e-4
    )


def test_rolling_is_the_harness_own(model: Decoder, tokenizer: Tokenizer, theirs: Any) -> None:
    text = " ".join(f"def get_{number}(self):" for number in range(40))
    asked = requests("loglikelihood_rolling", (text,), ("x",), ("café",))
    theirs.add_bos_token = False  # else it predicts the begin token as well
    try:
        expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    finally:
        theirs.add_bos_token = None
    assert len(tokenizer.encode(text)) > 3 * CONTEXT
    assert ours(model, tokenizer).loglikelihood_rolling(asked) == pytest.approx(expected, abs=1e-3, rel=1e-6)


def test_bits_per_byte(model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TASKS)
    texts = [row["text"] for row in importlib.import_module("rows").short_texts()["test"]]
    total = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer.eot_id, *tokenizer.encode(text)])
        assert ids.numel() <= CONTEXT + 1
        with torch.no_grad():
            log_probs = model(ids[None, :-1])[0].log_softmax(-1)
        total += float(log_probs.gather(1, ids[1:, None]).sum())
    size = sum(len(text.encode()) for text in texts)
    found = run(model, tokenizer, "own_short_texts")
    assert found["own_short_texts"]["bits_per_byte"] == pytest.approx(-total / size / math.log(2), rel=1e-5)


def test_texts_are_the_harness_own(model: Decoder, beginning: Tokenizer, theirs: Any) -> None:
    long = " ".join(f"def get_{number}(self):" for number in range(20))
    contexts = ["def f(x):", "import os", "class Message:", long]
    asked = requests(
        "generate_until",
        *((context, {"until": ["e", "\n"], "max_gen_toks": 16}) for context in contexts),
        *((context, {"until": [], "max_gen_toks": 16, "temperature": 0.0}) for context in contexts),
    )
    lm = ours(model, beginning)
    found = lm.generate_until(asked)
    assert found == theirs.generate_until(asked, disable_tqdm=True)
    assert any(len(stopped) < len(whole) for stopped, whole in zip(found[:4], found[4:], strict=True))
    assert not any("e" in text for text in found[:4])
    assert lm.cut == 2


@pytest.mark.parametrize("batch_size", [1, 64])
def test_results_do_not_depend_on_the_batch(model: Decoder, tokenizer: Tokenizer, batch_size: int) -> None:
    expected = run(model, tokenizer, *METRICS, num_fewshot=1, batch_size=4)
    found = run(model, tokenizer, *METRICS, num_fewshot=1, batch_size=batch_size)
    assert found.keys() == expected.keys() == set(METRICS)
    for task in METRICS:
        assert found[task] == pytest.approx(expected[task], rel=1e-4), task


def test_texts_can_be_drawn(model: Decoder, tokenizer: Tokenizer) -> None:
    options = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "top_p": 0.9}
    asked = requests("generate_until", *[("def f(x):", options)] * 4)
    drawn = ours(model, tokenizer).generate_until(asked)
    assert len(set(drawn)) == 4  # repeats differ
    assert drawn == ours(model, tokenizer, batch_size=1).generate_until(asked)
    assert drawn != HarnessModel(model, tokenizer, seed=1).generate_until(asked)
    cold = requests("generate_until", ("def f(x):", {**options, "do_sample": False}))
    assert ours(model, tokenizer).generate_until(cold)[0] not in drawn


def test_more_tokens_than_the_context_holds(model: Decoder, tokenizer: Tokenizer) -> None:
    """The harness refuses these; with the 256 tokens that it asks for by itself no small model could be tried."""
    model = copy.deepcopy(model)
    with torch.no_grad():  # an end of text is never the likeliest, so that the context ends the text
        model.embedding.weight[tokenizer.eot_id] = 0.0
        model.head.weight[tokenizer.eot_id] = 0.0
    asked = requests("generate_until", ("def f(x): " * 30, {"until": []}))
    (text,) = ours(model, tokenizer).generate_until(asked)
    kept = tokenizer.encode("def f(x): " * 30)[-CONTEXT // 2 :]
    sampling = SamplingConfig(max_new_tokens=256, temperature=0.0, context_full="stop")
    (expected,) = complete(model, [kept], sampling, stop_tokens=[tokenizer.eot_id])
    assert len(expected.ids) == CONTEXT // 2 + 1  # the last one needs no place in the context
    assert text == tokenizer.decode(expected.ids, skip_special=True)


def sure_model(ids: Sequence[int]) -> Decoder:
    """A decoder that has no doubt what follows each of these tokens, which are all different."""
    model = Decoder(tiny_model("llama-10m", tie_word_embeddings=False, max_position_embeddings=CONTEXT)).eval()
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.zero_()
        model.embedding.weight.normal_(generator=torch.Generator().manual_seed(0))
        model.head.weight.zero_()
        for token, following in pairwise(ids):
            state = model.embedding.weight[token]
            model.head.weight[following] += 40 * state / state.norm() / math.sqrt(state.numel())
    return model


def test_known_answer(tokenizer: Tokenizer) -> None:
    model = sure_model([*tokenizer.encode("? yes"), tokenizer.eot_id])
    found = run(model, tokenizer, "own_verdicts")
    # six of eight are right
    assert found == {"own_verdicts": {"acc": 0.75, "acc_stderr": pytest.approx(math.sqrt(0.75 * 0.25 / 7))}}
    assert run(model, tokenizer, "own_verdicts", limit=6)["own_verdicts"]["acc"] == 1.0
    lm = ours(model, tokenizer)
    (yes, no) = lm.loglikelihood(requests("loglikelihood", ("is it so?", " yes"), ("is it so?", " no")))
    assert yes == (pytest.approx(0.0, abs=1e-3), True)
    assert no[0] < -20 and not no[1]
    # the text ends with the end of the document
    assert lm.generate_until(requests("generate_until", ("is it so?", {"until": ["\n"]}))) == [" yes"]


def test_tags_and_groups(model: Decoder, tokenizer: Tokenizer) -> None:
    by_tag, by_group = run(model, tokenizer, "own"), run(model, tokenizer, "own_group")
    group = by_group.pop("own_group")
    assert by_group == by_tag and by_tag.keys() == {"own_choices", "own_letters"}
    counts = {"own_choices": 6, "own_letters": 5}
    assert group["acc"] == pytest.approx(sum(by_tag[name]["acc"] * count for name, count in counts.items()) / 11)
    assert group["acc_stderr"] > 0


def test_conversations_are_those_of_training(model: Decoder, tokenizer: Tokenizer) -> None:
    lm = ours(model, tokenizer)
    talk = [
        {"role": "user", "content": "What is <|im_end|>?"},
        {"role": "assistant", "content": "A token."},
        {"role": "user", "content": " And\n "},
    ]
    prompt = lm.apply_chat_template(talk)
    expected = ChatFormat(tokenizer).render_prompt([Message(**turn) for turn in talk])
    assert lm.tok_encode(prompt) == expected
    assert expected.count(tokenizer.im_end_id) == 3 and "<|im_end|>?" in prompt
    # what comes next is an assistant's words, whole
    (request,) = requests("loglikelihood", (prompt, "yes"))
    assert lm._encode_pair(*request.args) == (expected, tokenizer.encode("yes"))
    begun = lm.apply_chat_template([*talk, {"role": "assistant", "content": "It"}], add_generation_prompt=False)
    assert lm.tok_encode(begun) == expected + tokenizer.encode("It")
    assert lm.chat_template(True) == tokenizer.chat_template


def test_prompts_become_conversations(model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    original = HarnessModel._loglikelihood_tokens

    def watched(self: HarnessModel, pairs: Any, **options: Any) -> Any:
        asked.extend([*context, *continuation] for _, context, continuation in pairs)
        return original(self, pairs, **options)

    monkeypatch.setattr(HarnessModel, "_loglikelihood_tokens", watched)
    run(model, tokenizer, "own_verdicts", num_fewshot=1, chat_template=True, limit=1)
    assert len(asked) == 2
    chat = ChatFormat(tokenizer)
    header = chat.render_prompt([Message("user", "0: is it so?")])
    for ids, answer in zip(asked, ("yes", "no"), strict=True):
        assert ids[-len(tokenizer.encode(answer)) :] == tokenizer.encode(answer)
        before = ids[: -len(tokenizer.encode(answer))]
        assert before[-len(header) :] == header
        # the example before it is a turn of its own
        assert before.count(tokenizer.im_start_id) == 4


def test_a_turn_ends_with_its_token(tokenizer: Tokenizer) -> None:
    lm = ours(sure_model([*tokenizer.encode("\nyes"), tokenizer.im_end_id, *tokenizer.encode("never")]), tokenizer)
    prompt = lm.apply_chat_template([{"role": "user", "content": "?"}])
    assert lm.generate_until(requests("generate_until", (prompt, {"until": []}))) == ["yes"]


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "no task": ({"tasks": []}, "no tasks"),
    "twice": ({"tasks": ["own_choices", "own_group"]}, "own_choices is asked for twice"),
    "no folder": ({"tasks_folder": Path("nowhere")}, "nowhere: no such folder"),
    "data": (
        {"tasks": ["own_missing"]},
        r"own_missing: its data cannot be loaded \(no route to the data\).*tasks_folder",
    ),
    "programs": ({"tasks": ["own_unsafe"]}, "own_unsafe runs programs that the model writes"),
    "beams": ({"tasks": ["own_beams"]}, "own_beams: its generation_kwargs have num_beams=4"),
    "examples": ({"num_fewshot": 5}, "own_choices has 4 examples to show, and num_fewshot is 5"),
    "fewer than none": ({"num_fewshot": -1}, "num_fewshot is -1"),
    "limit": ({"limit": 0}, "limit is 0"),
    "batch": ({"batch_size": 0}, "batch_size is 0"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors(model: Decoder, tokenizer: Tokenizer, case: str) -> None:
    options, message = ERRORS[case]
    with pytest.raises(UserError, match=message) as caught:
        run_tasks(model, tokenizer, **{"tasks": ["own_choices"], "tasks_folder": TASKS, **options})
    assert "\n" not in str(caught.value)


def test_folder_errors(model: Decoder, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks

    with pytest.raises(UserError, match="has no task file"):
        run(model, tokenizer, "own_choices", tasks_folder=tmp_path)
    shutil.copytree(TASKS, tmp_path / "tasks")
    # the harness's own tasks take long to read
    monkeypatch.setattr(tasks, "TaskManager", partial(tasks.TaskManager, include_defaults=False))
    with pytest.raises(UserError, match="no task 'own_choice'; the nearest are own_choices"):
        run(model, tokenizer, "own_choice", tasks_folder=tmp_path / "tasks")
    (tmp_path / "tasks" / "own_verdicts.yaml").write_text("task: [")
    with pytest.raises(UserError, match=r"no task 'own_verdicts'.*own_verdicts.yaml cannot be read"):
        run(model, tokenizer, "own_verdicts", tasks_folder=tmp_path / "tasks")
    (tmp_path / "tasks" / "own_words.yaml").write_text("task: own_words\noutput_type: loglikelihood\nno_option: 1\n")
    with pytest.raises(UserError, match=r"own_words cannot be loaded .*no_option"):
        run(model, tokenizer, "own_words", tasks_folder=tmp_path / "tasks")
    (tmp_path / "tasks" / "rows.py").write_text("import not_installed_here\n")
    with pytest.raises(UserError, match=r"own_choices needs what is not installed .*not_installed_here"):
        run(model, tokenizer, "own_choices", tasks_folder=tmp_path / "tasks")


@pytest.mark.slow
def test_the_harness_own_tasks_are_known(model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no task 'helaswag'; the nearest are hellaswag"):
        run(model, tokenizer, "own_choices", "helaswag")


def test_without_the_library(model: Decoder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"pip install 'lit-llm\[eval\]'"):
        run(model, tokenizer, "own_choices")


def test_models_that_do_not_suit(model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="reward"):
        run(Decoder(tiny_model("llama-10m", output="score", tie_word_embeddings=False)), tokenizer, "own_choices")
    bare = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps({**tokenizer.state, "added_tokens": []})))
    assert bare.begin_id is None
    with pytest.raises(UserError, match="no token that begins a text"):
        run(model, bare, "own_texts")
    with pytest.raises(UserError, match="neither a chat template"):
        run(model, bare, "own_choices", chat_template=True)


def test_answers_without_a_token(model: Decoder, tokenizer: Tokenizer) -> None:
    whole = next(text for text in ("return", "import", "self", "def") if len(tokenizer.encode(text)) == 1)
    with pytest.raises(UserError, match=f"task own: the answer '{whole[1:]}' has no token of its own"):
        ours(model, tokenizer).loglikelihood(requests("loglikelihood", (whole[:1], whole[1:])))


def test_what_is_said(
    model: Decoder, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    run(model, tokenizer, "own_group", "own_words", num_fewshot=2)
    assert "num_fewshot does not apply to own_letters" in caplog.text
    assert "texts were cut at their left to fit the model's context of 48 tokens" in caplog.text
    out, err = capfd.readouterr()
    assert out == "" and "it/s" not in err and "bootstrapping" not in err
