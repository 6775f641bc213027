"""Sources of rewards: what they are given, what they say, and how they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ppo_runs import write_policy

from lit_llm.config import UserError
from lit_llm.interop import load_model_folder
from lit_llm.model import last_scores
from lit_llm.modules.rewards import RewardFunction, Rewards, reward_names
from lit_llm.modules.rollout import Answer, Experience
from lit_llm.tokenizer import Tokenizer
from lit_llm.tokenizer.chat import with_chat_tokens

PROMPTS = ["a", "b", "c"]


def call(name: str, **fields: Any) -> list[float]:
    rows = [{key: values[row] for key, values in fields.items()} for row in range(3)]
    return RewardFunction(f"reward_functions:{name}")(PROMPTS, ["e", "ee", "x"], rows)


def test_a_function_is_given_texts_and_fields() -> None:
    assert call("letters") == [1.0, 2.0, 0.0]
    assert call("wanted_length", wanted=[1, 5, 0]) == [0.0, -3.0, -1.0]


def test_a_field_that_a_row_has_not_is_none() -> None:
    seen: dict[str, Any] = {}

    class Recorder(RewardFunction):
        def __init__(self) -> None:
            self.source = "recorder"
            self.function = lambda **columns: seen.update(columns) or [0.0] * 3

    Recorder()(PROMPTS, ["", "", ""], [{"one": 1}, {"two": 2}, {"one": 3}])
    assert seen == {"prompts": PROMPTS, "completions": [""] * 3, "one": [1, None, 3], "two": [None, 2, None]}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails", "reward_functions:fails failed: KeyError: 'no such"),
        ("too_few", "reward_functions:too_few returned 2 numbers for 3 rows"),
        ("nothing", "reward_functions:nothing returned None for row 1, not a finite number; its completion is 'ee'"),
        ("not_a_number", "reward_functions:not_a_number returned nan for row 0"),
        ("takes_no_fields", "unexpected keyword argument 'wanted'; it is called with prompts, completions and each"),
        ("missing", "module reward_functions has no function 'missing'"),
        ("number", "module reward_functions has no function 'number'"),
    ],
)
def test_a_function_that_fails_is_named_in_a_line(name: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        call(name, wanted=[1, 1, 1])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot import no_such_module for no_such_module:f: ModuleNotFoundError"):
        RewardFunction("no_such_module:f")
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)  # modules are looked for here
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"cannot import broken_rewards .* ZeroDivisionError"):
        RewardFunction("broken_rewards:f")


def test_names(tmp_path: Path) -> None:
    sources = ["my.rewards:brevity", str(tmp_path / "judge" / "model"), "other:brevity", str(tmp_path / "critic")]
    assert reward_names(sources) == ["brevity", "judge", "brevity_3", "critic"]
    assert reward_names(["a:f_3", "b:f", "c:f"]) == ["f_3", "f", "f_4"]


def test_a_file_is_answered_with_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for source, hint in (
        ("./rew.py:f", "; write rew:f"),
        ("some/rew.py:f", "; write some.rew:f"),
        (f"{tmp_path}/some/rew.py:f", "; write some.rew:f"),
        ("../rew.py:f", "; put rew.py into the working directory and write rew:f"),
    ):
        with pytest.raises(UserError) as caught:
            RewardFunction(source)
        assert str(caught.value).endswith(hint)


def test_a_folder_gives_the_score_at_the_last_token(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Also where the answer has the padding token in its midst, and whatever stands after its end."""
    folder = write_policy(tmp_path / "judge", tokenizer, output="score", seed=5)
    model, tokens = load_model_folder(folder)
    rewards = Rewards([str(folder), "reward_functions:letters"], [0.5, 2.0], tokens)
    assert rewards.folders == [folder]
    rewards.models = [model]
    e = tokens.encode("e")
    answers = [
        Answer([5, 6, 7], [*e, tokens.pad_id or 0, *e, tokens.im_end_id or 0], ended=True),
        Answer([8], [9]),
        Answer([8, 9], [*e, 10, 11, 12], ended=True),
    ]
    experience = Experience.of_answers(answers, 64, torch.device("cpu"))
    experience.tokens[1, 2:] = 77
    found = rewards(answers, [{}, {}, {}], experience, rows=2)
    for row, answer in enumerate(answers):
        ids = torch.tensor([answer.prompt + answer.ids])
        length = torch.tensor([ids.size(1)])
        alone = model(ids, head=lambda hidden, head, length=length: last_scores(hidden, head, length))
        torch.testing.assert_close(found["judge"][row], alone[0].detach(), rtol=1e-5, atol=1e-6)
    texts = [tokens.decode(answer.ids[: -1 if answer.ended else None]) for answer in answers]
    assert found["letters"].tolist() == [float(text.count("e")) for text in texts]
    assert found["letters"][0] == 2.0
    torch.testing.assert_close(rewards.weighted(found), 0.5 * found["judge"] + 2.0 * found["letters"])
    real = torch.tensor([True, False, True])
    assert rewards(answers, [{}, {}, {}], experience, None, real)["letters"][1] == 0.0


def test_folders_that_cannot_judge_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    policy = write_policy(tmp_path / "policy", tokenizer)
    tokens = with_chat_tokens(tokenizer)
    with pytest.raises(UserError, match="is a language model, which gives no scores"):
        Rewards([str(policy)], None, tokens)
    judge = write_policy(tmp_path / "judge", tokenizer, output="score")
    with pytest.raises(UserError, match="has another tokenizer than the policy"):
        Rewards([str(judge)], None, tokens.extended(["<|more|>"]))
    with pytest.raises(UserError, match="missing is not a model folder"):
        Rewards([str(tmp_path / "missing")], None, tokens)
