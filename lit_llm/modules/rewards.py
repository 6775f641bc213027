"""The sources of rewards: folders of reward models, and Python functions."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_llm.config import UserError
from lit_llm.distributed.ranks import gather
from lit_llm.interop import load_tokenizer, read_model_config
from lit_llm.model import Decoder
from lit_llm.model.scores import last_scores
from lit_llm.modules.rollout import Answer, Experience
from lit_llm.tokenizer import Tokenizer


def is_function(source: str) -> bool:
    """Tell whether a source of rewards is a function, written package.module:function, and not a folder."""
    return ":" in source and not Path(source).exists()


def reward_names(sources: Sequence[str]) -> list[str]:
    """Name the rewards for the curves: after the function, the folder, or the run whose model folder it is.

    No two have the same name: a number is put behind one that is taken.
    """
    names: list[str] = []
    for source in sources:
        path = Path(source)
        folder = path.parent.name if path.name == "model" else path.name
        name = source.rpartition(":")[2] if is_function(source) else folder
        numbered = (f"{name}_{number}" for number in count(len(names) + 1))
        names.append(next(each for each in chain([name], numbered) if each not in names))
    return names


class Rewards:
    """All rewards of a run.

    Args:
        sources: folders of reward models, and functions.
        weights: one for each; None: 1.
        tokenizer: the policy's.

    Attributes:
        names: what they are called, in order.
        folders: those of the reward models, in order.
        models: the models in them, which the module lays out.

    Raises:
        UserError: there is none, or one of them cannot be used with this policy.
    """

    def __init__(self, sources: Sequence[str], weights: Sequence[float] | None, tokenizer: Tokenizer) -> None:
        if not sources:
            raise UserError("rewards is empty; give folders of reward models, or functions as package.module:function")
        self.names = reward_names(sources)
        self.weights = [1.0] * len(sources) if weights is None else list(weights)
        self.tokenizer = tokenizer
        self.folders = [Path(source) for source in sources if not is_function(source)]
        self.models: list[Decoder] = []
        self._functions = {
            name: RewardFunction(source)
            for name, source in zip(self.names, sources, strict=True)
            if is_function(source)
        }
        for folder in self.folders:
            check_reward_model(folder, tokenizer)

    def __call__(
        self,
        answers: Sequence[Answer],
        fields: Sequence[dict[str, Any]],
        experience: Experience,
        rows: int | None,
        real: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Compute each reward of each answer [b], by name.

        Args:
            answers: b of them.
            fields: those of the row that each answer is for.
            experience: the answers, padded.
            rows: answers that a model reads at once.
            real: [b] where an answer counts; the others are not shown to functions, and get 0. None: all count.

        Raises:
            UserError: a function fails, on any rank.
        """
        kept = list(range(len(answers))) if real is None else real.nonzero().flatten().tolist()
        models = iter(self.models)
        by_functions = self._of_functions([answers[row] for row in kept], [fields[row] for row in kept])
        rewards = {}
        for name in self.names:
            if name in by_functions:
                values = torch.zeros(len(answers))
                values[kept] = torch.tensor(by_functions[name])
                rewards[name] = values.to(experience.tokens.device)
            else:
                model = next(models)
                parts = [model_scores(model, part.tokens, part.lengths) for part in experience.split(rows)]
                rewards[name] = torch.cat(parts)
        return rewards

    def weighted(self, rewards: dict[str, Tensor]) -> Tensor:
        """Add the rewards up by their weights [b]."""
        return sum(weight * rewards[name] for weight, name in zip(self.weights, self.names, strict=True))  # type: ignore[return-value]

    def _of_functions(self, answers: list[Answer], fields: list[dict[str, Any]]) -> dict[str, list[float]]:
        if not self._functions:
            return {}
        rewards, problem = {}, ""
        prompts = [self.tokenizer.decode(answer.prompt) for answer in answers]
        completions = [self.tokenizer.decode(answer.ids[: -1 if answer.ended else None]) for answer in answers]
        try:
            for name, function in self._functions.items():
                rewards[name] = function(prompts, completions, fields) if answers else []
        except UserError as error:
            problem = str(error)
        # all ranks stop with the one that fails, which would else leave them waiting
        problems = [found for found in gather(problem) if found]
        if problems:
            raise UserError(problems[0])
        return rewards


class RewardFunction:
    """A Python function that scores answers: function(prompts, completions, **fields) -> one number for each answer.

    `prompts` are the texts that the policy read, with their special tokens; `completions` what it wrote, without the
    token that ended it; and each field of the rows is a list of its values, None where a row has it not. Modules are
    looked for in the working directory, too.

    Args:
        source: package.module:function.

    Raises:
        UserError: there is no such function, or it cannot be imported.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        module, _, name = source.rpartition(":")
        if str(Path.cwd()) not in sys.path:
            sys.path.append(str(Path.cwd()))
        try:
            found: Any = importlib.import_module(module)
        except Exception as error:  # whatever a module does when it is imported
            hint = _as_module(Path(module), name) if module.endswith(".py") else ""
            raise UserError(f"rewards: cannot import {module} for {source}: {_in_a_line(error)}{hint}") from error
        function = getattr(found, name, None)
        if not callable(function):
            raise UserError(f"rewards: module {module} has no function {name!r}; correct {source}")
        self.function: Callable[..., Any] = function

    def __call__(self, prompts: list[str], completions: list[str], rows: Sequence[dict[str, Any]]) -> list[float]:
        """Call the function on some answers.

        Args:
            prompts: texts.
            completions: texts.
            rows: the fields of each answer's row.

        Raises:
            UserError: the function fails, or does not return a finite number for each answer.
        """
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        try:
            returned = self.function(prompts=prompts, completions=completions, **columns)
            values = list(returned)
        except Exception as error:  # whatever the function does
            raise UserError(
                f"the reward function {self.source} failed: {_in_a_line(error)}; it is called with prompts, "
                "completions and each field of the rows, all by name"
            ) from error
        if len(values) != len(prompts):
            raise UserError(f"the reward function {self.source} returned {len(values)} numbers for {len(prompts)} rows")
        rewards = []
        for row, value in enumerate(values):
            try:
                number = float(value)
            except Exception:  # of a type that may be anything
                number = math.nan
            if not math.isfinite(number):
                raise UserError(
                    f"the reward function {self.source} returned {value!r} for row {row}, not a finite number; "
                    f"its completion is {completions[row][:60]!r}"
                )
            rewards.append(number)
        return rewards


def check_reward_model(folder: Path, tokenizer: Tokenizer, option: str = "rewards") -> None:
    """Refuse a folder whose scores would mean nothing.

    Raises:
        UserError: it holds no reward model, or one that reads other tokens than the policy writes.
    """
    if read_model_config(folder).output != "score":
        raise UserError(f"{option}: {folder} is a language model, which gives no scores; give a reward model")
    check_same_tokens(folder, tokenizer, option)


def check_same_tokens(folder: Path, tokenizer: Tokenizer, option: str) -> None:
    """Refuse a model folder whose tokenizer gives other ids than the policy's.

    Raises:
        UserError: it does.
    """
    if load_tokenizer(folder).digest != tokenizer.digest:
        raise UserError(
            f"{option}: {folder} has another tokenizer than the policy, so that it would read another text; train it "
            "from the model that the policy starts from"
        )


def model_scores(model: Decoder, tokens: Tensor, lengths: Tensor) -> Tensor:
    """Compute a reward model's score of each conversation [b], read at its last token.

    Args:
        model: gives scores.
        tokens: [b, t], padded on the right.
        lengths: [b] tokens without padding.
    """

    def read(hidden: Tensor, head: nn.Linear) -> Tensor:
        return last_scores(hidden, head, lengths)

    with torch.no_grad():
        return model(tokens, head=read)


def _as_module(file: Path, name: str) -> str:
    """Say how a function in a file is to be written."""
    file = file.resolve()
    if not file.is_relative_to(Path.cwd()):
        return f"; put {file.name} into the working directory and write {file.stem}:{name}"
    return f"; write {'.'.join(file.relative_to(Path.cwd()).with_suffix('').parts)}:{name}"


def _in_a_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
