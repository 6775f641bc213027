"""Which models are compared by a judge, and who judges."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from lit_llm.config.bounds import check_at_least, check_no_blank
from lit_llm.config.errors import UserError
from lit_llm.config.generation import SamplingConfig

_OF_OURS_ALONE = (
    *("top_k", "min_p", "repetition_penalty", "logit_bias", "stop_token_ids", "truncate_prompt", "context_full"),
)
_MOST_STOP_STRINGS = 4


def is_endpoint(place: str) -> bool:
    """Whether answers or verdicts are asked for over HTTP."""
    return place.startswith(("http://", "https://"))


def check_address(address: str, option: str) -> None:
    """Refuse an address that cannot be one of an endpoint.

    Raises:
        UserError: it has no host, brings a password along, or its port is no number.
    """
    try:
        parts = urlsplit(address)
        known = is_endpoint(address) and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        known = False
    if not known:
        raise UserError(f"{option} is {address!r}; it must be http://HOST[:PORT] or https://HOST, with a path or not")
    if parts.username is not None or parts.password is not None:
        raise UserError(f"{option} has a name or password in it; give the key by a file or the environment")


@dataclass
class EndpointConfig:
    """How an endpoint with OpenAI's interface is asked; a failure to answer is tried again, after a pause."""

    api_key_file: str | None = None
    """File with the key that the endpoint wants; null: the environment variable key_variable, where there is one."""
    key_variable: str = "LIT_LLM_API_KEY"
    """Environment variable that holds the key, as OPENAI_API_KEY."""
    at_once: int = 4
    """Requests that are under way at the same time."""
    timeout: float = 120.0
    """Seconds in which an answer must have come."""
    attempts: int = 6
    """How often a request is made before the endpoint counts as down; the pauses are 1, 2, 4, ... s, or as long as the
    endpoint says (Retry-After)."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "at_once", "attempts")
        if not 0 < self.timeout < math.inf:
            raise UserError(f"timeout is {self.timeout}; it must be a number of seconds above 0")
        for name in ("api_key_file", "key_variable"):
            if getattr(self, name) == "":
                raise UserError(f"{name} is empty; give one, or leave it out")


@dataclass
class JudgeSourceConfig(EndpointConfig):
    """Who judges: an endpoint with OpenAI's interface, a language model's folder, or a reward model's."""

    url: str | None = None
    """Address of an endpoint, as http://127.0.0.1:8000 of serve or https://api.openai.com/v1; null: model is a folder.
    """
    model: str | None = None
    """With url the model's name there (null: the only one that it lists); without url a model folder or a run. A
    language model's verdict is the likeliest of the three, by log-probability; a reward model's the higher score."""
    temperature: float | None = 0.0
    """Temperature of an endpoint's replies; null leaves it out of the request, for models that refuse it."""
    max_tokens: int = 1024
    """Tokens of an endpoint's reply at most; a judge that thinks aloud needs room."""
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls that limit."""
    json_verdict: bool = False
    """Hold an endpoint's replies to a JSON schema (response_format), which small judges need; serve does it with the
    extra `constrained`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "max_tokens")
        if self.tokens_field not in ("max_tokens", "max_completion_tokens"):
            raise UserError(f"tokens_field is {self.tokens_field!r}; it must be max_tokens or max_completion_tokens")
        if self.temperature is not None and not 0.0 <= self.temperature <= 2.0:
            raise UserError(f"temperature is {self.temperature}; it must be from 0 to 2, or null")
        if self.url is not None:
            check_address(self.url, "judge.url")
            return
        if self.model is not None and is_endpoint(self.model):
            raise UserError(f"judge.model is the address {self.model}; give it as judge.url")
        for name, unset in JudgeSourceConfig.__dataclass_fields__.items():
            if name not in ("url", "model") and getattr(self, name) != unset.default:
                raise UserError(f"judge.{name} is for an endpoint alone; give judge.url, or leave it out")


@dataclass
class JudgeConfig:
    """Compare models by a judge that reads their answers: win rates, strengths, and how far the judge can be trusted.

    What is judged is kept line by line: an interrupted comparison goes on where it was with the same command.
    """

    models: dict[str, str] = field(default_factory=dict)
    """Two models or more by name: a model folder or run, which answers the prompts; a file of rows that has answers
    (.jsonl, .json, .parquet); or an endpoint, http://HOST[:PORT][/v1][#MODEL]: '{a: checkpoints/sft, b: b.jsonl}'."""
    prompts: list[str] = field(default_factory=list)
    """Files of rows with the prompts, as ppo.py reads them; none: the prompts of the first file of answers. A row's
    field id is its name, or else its number."""
    max_prompts: int | None = None
    """Take only the first so many prompts; null: all."""
    answer_field: str = "answer"
    """Field of the rows of models that holds the answer, as output in AlpacaEval's files."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How folders and endpoints answer."""
    accelerator: str = "auto"
    """Device of models in folders: auto, cpu or cuda."""
    dtype: str = "auto"
    """Arithmetic of models in folders: auto (as stored), float32 or bfloat16."""
    batch_size: int = 8
    """Answers written, or judged by a folder, at once."""
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    """How endpoints among models are asked."""
    judge: JudgeSourceConfig = field(default_factory=JudgeSourceConfig)
    """Who judges."""
    mode: Literal["pairs", "grades"] = "pairs"
    """pairs: which of two answers is better, asked in both orders; grades: each answer by itself, from 1 to 10 (a
    reward model's scores have a scale of their own), of which the higher one wins."""
    baseline: str | None = None
    """Name of the model that all others are compared with; null: every model with every other."""
    rubric: str | None = None
    """Text file with what makes an answer good, in place of the built-in criterion; not for a reward model."""
    repeat: float | None = None
    """Share of the questions that are put twice, which shows how far the judge agrees with itself; null: 0.1 of an
    endpoint, none of a folder, which always says the same."""
    labels: list[str] = field(default_factory=list)
    """Files of rows with human verdicts, {"id": "7", "label": "a"}: a for the first model, b for the second, or tie;
    of more than two models, rows name the two as well: "a": "sft", "b": "dpo"."""
    examples: int = 10
    """Comparisons whose verdicts changed with the order that the report shows."""
    seed: int = 0
    """Seed of the resamples behind the intervals, and of which questions are put twice."""
    output: str = "checkpoints/judge"
    """Folder for the answers, the verdicts, and the report: judge.md, judge.json and judge.html."""
    overwrite: bool = False
    """Begin anew where the folder has a comparison already; false goes on with it."""

    def __post_init__(self) -> None:
        if any(not name.strip() or not place.strip() for name, place in self.models.items()):
            raise UserError("models has an empty name or place; give each as NAME: FOLDER, FILE or ADDRESS")
        if "tie" in self.models:
            raise UserError("models has one named tie, which is what a verdict may be; give it another name")
        check_no_blank(self, "prompts", "labels")
        check_at_least(self, 1, "max_prompts", "batch_size")
        check_at_least(self, 0, "examples", "seed")
        if self.mode not in ("pairs", "grades"):
            raise UserError(f"mode is {self.mode!r}; it must be pairs or grades")
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise UserError(f"accelerator is {self.accelerator!r}; it must be auto, cpu or cuda")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}; it must be auto, float32 or bfloat16")
        if self.repeat is not None and not 0.0 <= self.repeat <= 1.0:
            raise UserError(f"repeat is {self.repeat}; it must be from 0 to 1, or null")
        if self.baseline is not None and self.baseline not in self.models:
            raise UserError(f"baseline is {self.baseline!r}; it must be one of models: {', '.join(self.models)}")
        self._check_endpoints()

    def _check_endpoints(self) -> None:
        asked = [name for name, place in self.models.items() if is_endpoint(place)]
        for name in asked:
            check_address(self.models[name], f"models.{name}")
        if not asked and self.endpoint != EndpointConfig():
            raise UserError("endpoint is given, but none of models is one; leave it out, or see judge for the judge's")
        default = SamplingConfig()
        for option in _OF_OURS_ALONE if asked else ():
            if getattr(self.sampling, option) != getattr(default, option):
                raise UserError(
                    f"sampling.{option} cannot be asked of an endpoint, as models.{asked[0]} is; leave it out"
                )
        if asked and len(self.sampling.stop_strings) > _MOST_STOP_STRINGS:
            raise UserError(f"sampling.stop_strings has more than {_MOST_STOP_STRINGS}, which endpoints refuse")

    def check_complete(self) -> None:
        """Refuse a comparison without models or without a judge.

        Raises:
            UserError: it lacks one of the two.
        """
        if len(self.models) < 2:
            raise UserError(
                "models has fewer than two; give two or more, as --models '{a: checkpoints/sft, b: b.jsonl}'"
            )
        if self.judge.url is None and self.judge.model is None:
            raise UserError("there is no judge; give --judge.url ADDRESS, or --judge.model FOLDER")
