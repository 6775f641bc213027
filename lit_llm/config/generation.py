"""How text is drawn from a model."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from lit_llm.config.bounds import check_seed
from lit_llm.config.errors import UserError

BeginToken = Literal["auto", "always", "never"]

# Within these the arithmetic of logits stays finite in float32.
MOST_TEMPERATURE = 1e6
MOST_REPETITION_PENALTY = 1e3
MOST_ADDED = 1e6
MOST_LENGTH_PENALTY = 10.0


@dataclass
class SamplingConfig:
    """How each next token is chosen, and when a text ends."""

    max_new_tokens: int = 200
    """Tokens to write at most; an end-of-text token stops earlier."""
    temperature: float = 0.8
    """Divides the logits, at most 1e6; 0 always takes the likeliest token."""
    top_k: int | None = None
    """Keep only the k likeliest tokens."""
    top_p: float | None = None
    """Keep the likeliest tokens that together reach this probability."""
    min_p: float | None = None
    """Keep the tokens at least this many times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Divides positive logits, and multiplies negative ones, of tokens in the prompt or the text; 0.001 to 1,000, and 1
    changes nothing."""
    presence_penalty: float = 0.0
    """Taken from the logit of each token that was written; below 0 it favours them."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token once for each time that it was written."""
    logit_bias: dict[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids: {token id: bias}."""
    stop_strings: list[str] = field(default_factory=list)
    """A text ends before the first of these that it comes to."""
    stop_token_ids: list[int] = field(default_factory=list)
    """Tokens that end a text, besides the model's own."""
    context_full: Literal["shift", "stop"] = "shift"
    """When a text fills the context: go on from its newest half, read again ("shift"), or end it ("stop")."""
    truncate_prompt: bool = False
    """Cut a prompt that is too long for the context at its left, instead of refusing it."""
    seed: int = 0
    """Seed of the draws; text depends on it, the prompt and the weights alone."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        self._check_numbers()
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1, or null")
        if "" in self.stop_strings:
            raise UserError("stop_strings has an empty text, which would end every text before it begins")
        if self.context_full not in ("shift", "stop"):
            raise UserError(f"context_full is {self.context_full!r}; it must be shift or stop")
        check_seed(self.seed)

    def _check_numbers(self) -> None:
        """Refuse numbers outside their range; NaN is outside every range."""
        if not 0.0 <= self.temperature <= MOST_TEMPERATURE:
            raise UserError(f"temperature is {self.temperature}; it must be from 0 to {MOST_TEMPERATURE:,.0f}")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise UserError(f"top_p is {self.top_p}; it must be above 0 and at most 1, or null")
        if self.min_p is not None and not 0.0 <= self.min_p <= 1.0:
            raise UserError(f"min_p is {self.min_p}; it must be from 0 to 1, or null")
        if not 1 / MOST_REPETITION_PENALTY <= self.repetition_penalty <= MOST_REPETITION_PENALTY:
            raise UserError(
                f"repetition_penalty is {self.repetition_penalty}; it must be from {1 / MOST_REPETITION_PENALTY} to "
                f"{MOST_REPETITION_PENALTY:,.0f} (1 changes nothing)"
            )
        added = {"presence_penalty": self.presence_penalty, "frequency_penalty": self.frequency_penalty}
        added |= {f"logit_bias of token {token}": value for token, value in self.logit_bias.items()}
        for name, value in added.items():
            if not abs(value) <= MOST_ADDED:
                raise UserError(f"{name} is {value}; it must be from -{MOST_ADDED:,.0f} to {MOST_ADDED:,.0f}")

    @property
    def penalizes(self) -> bool:
        """Whether a penalty makes the next token depend on which tokens the text already has."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass
class LoadConfig:
    """Which trained model is loaded, and onto which device, in which type and quantization."""

    model: str = "checkpoints/pretrain/model"
    """Model folder (ours or Hugging Face's), a GGUF file, or a run folder that holds a model."""
    _: KW_ONLY
    accelerator: str = "auto"
    """Device to run on: auto, cpu or cuda."""
    dtype: str = "auto"
    """Arithmetic: auto (as stored), float32 or bfloat16."""
    begin_token: BeginToken = "auto"
    """Whether a text begins with the begin token: auto (by the tokenizer's own rule, as in transformers; with those
    trained here it does, as documents do in training), always or never. Conversations under auto: as their template
    has it."""
    quantize: Literal["none", "int8", "int8_dynamic", "int4"] = "none"
    """Round the weights to 8 or 4 bits after reading them (int8_dynamic: what they are multiplied with as well), and
    tell what that costs in quality. On the CPU it is fast with dtype bfloat16, or compiled; in plain float32 the full
    model is mostly faster."""
    quality_text: str | None = None
    """Text file to measure the cost of quantize on (its first 512 tokens); null: what the model is asked to read, and
    where that is short the validation text of its run, or else a built-in text."""

    def __post_init__(self) -> None:
        if self.accelerator not in ("auto", "cpu", "cuda"):
            raise UserError(f"accelerator is {self.accelerator!r}; it must be auto, cpu or cuda")
        if self.dtype not in ("auto", "float32", "bfloat16"):
            raise UserError(f"dtype is {self.dtype!r}; it must be auto, float32 or bfloat16")
        if self.begin_token not in ("auto", "always", "never"):
            raise UserError(f"begin_token is {self.begin_token!r}; it must be auto, always or never")
        if self.quantize not in ("none", "int8", "int8_dynamic", "int4"):
            raise UserError(f"quantize is {self.quantize!r}; it must be none, int8, int8_dynamic or int4")
        if self.quality_text is not None and self.quantize == "none":
            raise UserError("quality_text is given, but quantize is none: there is no loss of quality to measure")


def check_prefix_cache(mib: int | None) -> None:
    """Refuse a size of a prefix cache that is below none."""
    if mib is not None and mib < 0:
        raise UserError(f"prefix_cache_mib is {mib}; it must be at least 0 (none), or null")


DEFAULT_TEXTS_AT_ONCE = 8


@dataclass
class GenerateConfig(LoadConfig):
    """Write text with a trained model."""

    prompts: list[str] = field(default_factory=list)
    """Texts to go on from; none: start from the token that begins a text."""
    prompts_file: str | None = None
    """File with one more prompt on each line; in .jsonl, the "prompt" or "text" of each object."""
    special_tokens: bool = True
    """Read the names of special tokens in prompts, as <|im_end|>, as these tokens; false: as letters."""
    num_samples: int = 1
    """Texts to write for each prompt; each draws with a seed of its own, made from seed and its number."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How tokens are chosen."""
    stream: bool = True
    """Show one text after the other as it is written; false: write all at once in batches, which is faster."""
    batch_size: int | None = None
    """Texts written at once with stream false, or with log_probs; as one ends, the next takes its place. Null: 8."""
    prefill_chunk: int = 512
    """Tokens of each prompt read in one pass; smaller takes less memory."""
    log_probs: int | None = None
    """Write JSON lines with each token's log-probability and those of so many likeliest tokens."""
    num_beams: int = 1
    """Above 1: the likeliest text of a beam search with so many beams, instead of a drawn one."""
    length_penalty: float = 1.0
    """Beam search divides a text's log-probability by its length to this power, from -10 to 10; higher favours longer
    texts."""
    draft_model: str | None = None
    """Folder of a small model of the same vocabulary that guesses ahead; texts are drawn from the same distribution.
    It is never quantized."""
    draft_tokens: int = 4
    """Tokens that the draft model guesses at a time."""
    regex: str | None = None
    """Write only texts that match this regular expression (needs the extra `constrained`)."""
    json_schema: str | None = None
    """Write only JSON of this schema: a file, or the schema itself (needs the extra `constrained`)."""
    compile: bool = False
    """Write with code compiled for the model: a minute or so at the start, more for more layers, unless the machine has
    some of this form from before, and faster from then on, most with quantize int8. On the CPU it needs a C++ compiler,
    and keeps what it made with what torch's compiler keeps (TORCHINDUCTOR_CACHE_DIR). With quantize, a head that is the
    embedding is rounded as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_samples", "prefill_chunk", "num_beams", "draft_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size is not None and self.batch_size < 1:
            raise UserError(f"batch_size is {self.batch_size}; it must be at least 1, or null")
        if self.log_probs is not None and self.log_probs < 0:
            raise UserError(f"log_probs is {self.log_probs}; it must be at least 0, or null")
        if self.regex is not None and self.json_schema is not None:
            raise UserError("regex and json_schema cannot be had together; give one of the two")
        self._check_modes()

    def _check_modes(self) -> None:
        if not abs(self.length_penalty) <= MOST_LENGTH_PENALTY:
            raise UserError(f"length_penalty is {self.length_penalty}; it must be from -10 to 10")
        if self.length_penalty != 1.0 and self.num_beams == 1:
            raise UserError("length_penalty is for a beam search alone; give num_beams above 1, or leave it")
        if self.draft_tokens != 4 and self.draft_model is None:
            raise UserError("draft_tokens is for a draft model alone; give draft_model, or leave it")
        filters = (self.sampling.top_k, self.sampling.top_p, self.sampling.min_p)
        if self.num_beams > 1 and any(value is not None for value in filters):
            raise UserError("a beam search draws nothing; leave top_k, top_p and min_p out, or num_beams at 1")
        plain = self.log_probs is None and self.regex is None and self.json_schema is None
        for mode, on in (("num_beams", self.num_beams > 1), ("draft_model", self.draft_model is not None)):
            if on and not plain:
                raise UserError(f"{mode} cannot be had together with log_probs, regex or json_schema")
            if on and (self.sampling.penalizes or self.sampling.logit_bias or self.sampling.stop_strings):
                raise UserError(f"{mode} cannot be had together with penalties, logit_bias or stop_strings")
            if on and self.compile:
                raise UserError(f"{mode} cannot be had together with compile")
            if on and (self.batch_size is not None or not self.stream):
                raise UserError(
                    f"with {mode} one text is written after the other; leave batch_size out and stream at true"
                )
        if self.batch_size is not None and self.stream and self.log_probs is None:
            raise UserError(
                "batch_size is for texts that are written at once, and with stream one is shown after the other; add "
                "--stream false, or leave batch_size out"
            )
        if self.num_beams > 1 and self.draft_model is not None:
            raise UserError("num_beams and draft_model cannot be had together; give one of the two")
        if self.num_beams > 1 and self.num_samples > 1:
            raise UserError("a beam search has one outcome; leave num_samples at 1")
