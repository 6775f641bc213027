"""Measuring the safety of a trained model."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_llm.config import ContaminationConfig, SafetyConfig, SamplingConfig, SourceConfig, UserError, to_plain
from lit_llm.config.files import replace_files, write_json
from lit_llm.config.references import EvaluationTexts
from lit_llm.config.remote import is_url
from lit_llm.config.safety import SAFETY_CHECKS
from lit_llm.data.cleaning.evaluation_index import EvaluationIndex
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.evaluation.safety.answers import answers, without_thought
from lit_llm.evaluation.safety.bias import bias
from lit_llm.evaluation.safety.canaries import read_canaries
from lit_llm.evaluation.safety.contaminated import contaminated
from lit_llm.evaluation.safety.exposure import count_planted, exposure
from lit_llm.evaluation.safety.finding import Finding
from lit_llm.evaluation.safety.injection import attacks, injection, scenes
from lit_llm.evaluation.safety.membership import membership
from lit_llm.evaluation.safety.memorisation import extraction
from lit_llm.evaluation.safety.refusals import HarmRequest, built_in_requests, limited, read_requests, refusals
from lit_llm.evaluation.safety.report import FILES, SafetyReport, html, markdown, write_summary
from lit_llm.evaluation.safety.reward_length import reward_length
from lit_llm.evaluation.safety.toxicity import toxicity
from lit_llm.evaluation.safety.windows import draw_windows
from lit_llm.generation import complete
from lit_llm.interop import read_model_config
from lit_llm.planning import count_parameters
from lit_llm.stages.contamination import contamination
from lit_llm.stages.loading import LoadedModel, find_model, is_only_pretrained, load, results_folder, run_of
from lit_llm.stages.trained_on import open_shards, shards_of_run
from lit_llm.tokenizer import prompt_ids
from lit_llm.tokenizer.chat import ChatFormat, Message

_WINDOWS = 500
_OWN_OPTIONS = {
    "canaries": "canaries",
    "evaluations": "contamination",
    "requests": "refusals",
    "toxic_words": "toxicity",
    "preferences": "reward_length",
}
"""Options without which a check is not made, or which show that it is wanted."""


@dataclass(frozen=True)
class Safety:
    """What was measured.

    Attributes:
        folder: where the report is.
        report: what is in it.
        card: the model card that has a summary now; None where there is none.
    """

    folder: Path
    report: SafetyReport
    card: Path | None


def safety(config: SafetyConfig) -> Safety:
    """Make the checks that are asked for, or all that can be made, and write safety.md, safety.json and safety.html.

    Raises:
        UserError: a check that is asked for cannot be made, something that is given cannot be read, or no check can be
            made at all.
    """
    began = time.perf_counter()
    run = run_of(config.model)
    output = Path(config.output) if config.output is not None else results_folder(config.model)
    for name in FILES:
        if (output / name).exists() and not config.overwrite:
            raise UserError(f"{output / name} is there already; give another --output, or --overwrite true")
    session = _Session(config)
    output.mkdir(parents=True, exist_ok=True)  # that nothing can be written there should be known before the work
    findings: dict[str, Finding] = {}
    left_out: dict[str, str] = {}
    for name in SAFETY_CHECKS:
        if config.checks and name not in config.checks:
            continue
        try:
            session.require(name)
            findings[name] = session.checks[name]()
        except UserError as error:
            if name in session.asked:
                raise UserError(f"check {name}: {error}") from error
            left_out[name] = str(error)
            print(f"left out: {name}: {error}", file=sys.stderr)
    if not findings:
        raise UserError(f"no check can be made: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    facts = session.facts() | {"seconds": round(time.perf_counter() - began, 1)}
    report = SafetyReport(facts, findings, left_out)
    write_json(output / FILES[0], report.as_json() | {"config": to_plain(config)})
    replace_files({output / FILES[1]: markdown(report), output / FILES[2]: html(report)})
    card = None
    if config.card and run is not None:
        if output.resolve() == run.resolve():
            card = write_summary(session.folder, report, config.quantize)
        else:
            print(f"the model card stays as it is, as it tells of a report in {run}", file=sys.stderr)
    return Safety(output, report, card)


@dataclass
class _Session:
    """A model, what is given to measure it on, and what several checks need."""

    config: SafetyConfig
    folder: Path = field(init=False)
    asked: set[str] = field(init=False)

    def __post_init__(self) -> None:
        config = self.config
        self.folder = find_model(config.model)
        self.is_reward = read_model_config(self.folder).output == "score"
        if self.is_reward and config.quantize != "none":
            raise UserError(f"quantize cannot be had of {config.model}, which is a reward model; leave it out")
        self.asked = {*config.checks, *(check for name, check in _OWN_OPTIONS.items() if getattr(config, name))}
        for name in SAFETY_CHECKS:
            if name in self.asked:
                try:
                    self.require_kind(name)
                except UserError as error:
                    raise UserError(f"check {name}: {error}") from error
        self.canaries = None if config.canaries is None else read_canaries(Path(config.canaries))
        self.more_requests = read_requests(config.requests)
        self._check_evaluations()
        self.checks: dict[str, Callable[[], Finding]] = {
            "memorisation": self._memorisation,
            "canaries": self._canaries,
            "membership": self._membership,
            "contamination": self._contamination,
            "refusals": self._refusals,
            "toxicity": self._toxicity,
            "bias": self._bias,
            "injection": self._injection,
            "reward_length": self._reward_length,
        }

    def _check_evaluations(self) -> None:
        """Refuse evaluations that cannot be looked for before anything long begins."""
        if not self.config.evaluations:
            return
        try:
            EvaluationIndex(EvaluationTexts(list(self.config.evaluations)))
        except UserError as error:
            reason = str(error).replace("; set them lower", "; the command contamination takes other numbers")
            raise UserError(f"check contamination: {reason}") from error

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model, read once it is known that a check needs it."""
        return load(self.config, reward_models=True)

    def require_kind(self, check: str) -> None:
        """Refuse a check that a model of this kind cannot take, or for which nothing is given.

        Raises:
            UserError: says why.
        """
        if self.is_reward != (check == "reward_length"):
            kind = "gives scores, not text (a reward model)" if self.is_reward else "is a language model"
            raise UserError(f"{self.folder} {kind}, which this check is not for")
        if check in ("refusals", "injection") and is_only_pretrained(self.folder.resolve()):
            raise UserError(f"{self.folder} was only pretrained and has not learned to answer; sft teaches that")
        for option, name in _OWN_OPTIONS.items():
            if (
                check == name
                and option in ("canaries", "evaluations", "preferences")
                and not getattr(self.config, option)
            ):
                raise UserError(f"there is nothing to make it with; give {option}")

    def require(self, check: str) -> None:
        """Refuse a check that cannot be made.

        Raises:
            UserError: says why.
        """
        self.require_kind(check)
        if check in ("refusals", "injection") and (reason := self.no_chat):
            raise UserError(reason)
        if check in ("memorisation", "membership", "contamination"):
            _ = self.shards  # these checks have nothing to read without

    @cached_property
    def no_chat(self) -> str:
        """Why the model takes no conversations; empty where it does."""
        try:
            ChatFormat(self.loaded.tokenizer)
        except UserError as error:
            return f"{self.folder} is no chat model: {str(error).partition(';')[0]}"
        return f"{self.folder} was only pretrained" if is_only_pretrained(self.folder.resolve()) else ""

    @cached_property
    def shard_folders(self) -> list[str]:
        """Where the training data is."""
        return self.config.shards or shards_of_run(self.config.model)

    @cached_property
    def shards(self) -> dict[str, list[ShardedTokens]]:
        """The shards of each split."""
        return open_shards(self.shard_folders, self.loaded.tokenizer)

    @property
    def limit(self) -> int:
        """How many windows are drawn of each split."""
        return self.config.limit or _WINDOWS

    def _windows(self, length: int, inside: int, use: int) -> dict[str, np.ndarray]:
        found = {}
        for number, (split, sources) in enumerate(self.shards.items()):
            tokens = draw_windows(sources, length, self.limit, self.config.seed + 2 * use + number, inside)
            if len(tokens):
                found[split] = tokens
        return found

    def _memorisation(self) -> Finding:
        config, room = self.config, self.loaded.model.config.max_position_embeddings
        lengths = [each for each in config.prefix_lengths if each + config.continuation_tokens <= room]
        if not lengths:
            raise UserError(
                f"a prefix of {config.prefix_lengths[0]} tokens and {config.continuation_tokens} after it do not fit "
                f"the context of {room} tokens; lower prefix_lengths or continuation_tokens"
            )
        windows = self._windows(
            lengths[-1] + config.continuation_tokens, lengths[0] + config.continuation_tokens, use=0
        )
        if "train" not in windows:
            raise UserError(
                f"no document of the shards has {lengths[0] + config.continuation_tokens} tokens; lower prefix_lengths "
                "or continuation_tokens"
            )
        ends = self.shards["train"][0].manifest.eot_id
        return extraction(self.loaded.model, windows, lengths, config.continuation_tokens, ends, config.batch_size)

    def _canaries(self) -> Finding:
        config, loaded = self.config, self.loaded
        assert self.canaries is not None
        canaries = self.canaries
        try:
            planted = count_planted(self.shards["train"], loaded.tokenizer, canaries)
        except UserError as error:
            if config.shards:
                raise
            print(f"canaries are taken to be planted as often as their file says: {error}", file=sys.stderr)
            planted = [canary.repeats for canary in canaries]
        if not any(planted):
            print("none of the canaries is in the training shards", file=sys.stderr)
        if config.limit is not None and len(canaries) > config.limit:
            canaries, planted = _spread(canaries, config.limit), _spread(planted, config.limit)
        return exposure(
            loaded.model,
            loaded.tokenizer,
            canaries,
            planted,
            begin_token=config.begin_token,
            references=config.references,
            batch_size=config.batch_size,
            seed=config.seed,
        )

    def _membership(self) -> Finding:
        length = min(self.config.window_tokens, self.loaded.model.config.max_position_embeddings)
        windows = self._windows(length + 1, 0, use=1)
        for split in ("train", "validation"):
            if len(windows.get(split, ())) < 2:
                raise UserError(f"the {split} split of the shards has no two windows of {length + 1} tokens")
        return membership(self.loaded.model, self.loaded.tokenizer, windows, self.config.batch_size)

    def _contamination(self) -> Finding:
        found = []
        for folder in self.shard_folders:
            if is_url(folder):
                raise UserError(f"{folder} is not on this machine, where shards are looked through; copy it here")
            corpus = SourceConfig(path=str(Path(folder) / "train"))
            found.append(contamination(ContaminationConfig(list(self.config.evaluations), corpus=corpus)))
        return contaminated(self.shard_folders, found)

    @cached_property
    def requests(self) -> list[HarmRequest]:
        """The built-in requests, and those that are given."""
        return limited([*built_in_requests(), *self.more_requests], self.config.limit)

    @cached_property
    def answers(self) -> list[str | None]:
        """What the model answers to them."""
        conversations = [[Message("user", request.prompt)] for request in self.requests]
        return self._answer(conversations, "requests")

    def _answer(self, conversations: list[list[Message]], what: str) -> list[str | None]:
        loaded, config = self.loaded, self.config
        return answers(
            *(loaded.model, loaded.tokenizer, conversations, config.max_new_tokens, config.batch_size, what),
            config.begin_token,
        )

    def _refusals(self) -> Finding:
        return refusals(self.requests, self.answers)

    def _toxicity(self) -> Finding:
        loaded, config = self.loaded, self.config
        if not self.no_chat:
            texts = [without_thought(text) for text in self.answers if text is not None]
            return toxicity(texts, config.toxic_words, f"{len(texts)} answers to the requests of the check of refusals")
        prompt = prompt_ids(loaded.tokenizer, "", config.begin_token)
        if not prompt:
            raise UserError("the tokenizer has no token that a text begins with, from which samples could be drawn")
        sampling = SamplingConfig(config.max_new_tokens, temperature=1.0, context_full="stop", seed=config.seed)
        written = complete(
            loaded.model,
            [prompt] * config.samples,
            sampling,
            tokenizer=loaded.tokenizer,
            stop_tokens=loaded.stop_tokens,
            max_batch=config.batch_size,
        )
        texts = [each.text for each in written]
        return toxicity(texts, config.toxic_words, f"{len(texts)} texts drawn at temperature 1 from nothing")

    def _bias(self) -> Finding:
        config = self.config
        return bias(self.loaded.model, self.loaded.tokenizer, config.batch_size, config.seed, config.begin_token)

    def _injection(self) -> Finding:
        chosen = scenes(_spread(attacks(), self.config.limit), self.config.seed)
        return injection(chosen, self._answer([scene.messages for scene in chosen], "injection"))

    def _reward_length(self) -> Finding:
        if self.no_chat:
            raise UserError(self.no_chat)
        config, loaded = self.config, self.loaded
        return reward_length(
            loaded.model, loaded.tokenizer, config.preferences, config.limit, config.batch_size, config.seed
        )

    def facts(self) -> dict[str, Any]:
        """What was measured, and with what."""
        loaded = self.loaded
        return {
            "model": str(loaded.folder),
            "parameters": count_parameters(loaded.model.config),
            "quantize": self.config.quantize,
            "dtype": str(loaded.model.embedding.weight.dtype).removeprefix("torch."),
            "device": loaded.device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }


def _spread(values: list[Any], limit: int | None) -> list[Any]:
    """Return at most `limit` values, evenly spread, so that there are some of each kind; None: all."""
    if limit is None or len(values) <= limit:
        return values
    return [values[number * len(values) // limit] for number in range(limit)]
