"""Serving a model over HTTP."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from lit_llm.config.errors import UserError
from lit_llm.config.generation import LoadConfig, check_prefix_cache


@dataclass
class ServeConfig(LoadConfig):
    """Serve a model over HTTP, with the interface of OpenAI's API and a page to chat on."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 lets other machines in, for which an api_key is wise."""
    port: int = 8000
    """Port to listen on; 0 takes a free one, which is printed."""
    max_batch: int = 8
    """Texts that are written at once; others wait for a place."""
    max_waiting: int = 64
    """Requests that may wait for a place; more are refused with status 429."""
    max_length: int | None = None
    """Tokens that a prompt and its answer may have together, for each of which memory is kept; null: the model's
    context."""
    default_max_tokens: int = 512
    """Tokens to write at most where a request does not say."""
    prefill_chunk: int = 512
    """Tokens of each prompt read in one pass; smaller takes less memory and makes other texts wait less."""
    prefix_cache_mib: int | None = None
    """Memory in MiB for keys and values of texts that have ended, so that a text which begins like one of them, as the
    next turn of a conversation does, reads only what is new; 0: none. null: an eighth of the machine's memory or of
    what is free on the GPU, but no more than 16 full batches take. Each model in memory has its own."""
    compile: bool = False
    """Write with code compiled for the model: a minute or so at the start for each of 1, 2, 4, ... max_batch texts at
    once, unless the machine has some of this form from before, with about as many adapters of the same layers and rank.
    On the CPU it needs a C++ compiler. With quantize, a head that is the embedding is rounded as well."""
    api_key: str | None = None
    """Requests must bring this key, as `Authorization: Bearer KEY`. Other users of the machine can read it in the list
    of processes: better give api_key_file, or the environment variable LIT_LLM_API_KEY. Without any, anyone may
    ask."""
    api_key_file: str | None = None
    """File with the key that requests must bring."""
    keys_file: str | None = None
    """YAML file of the keys of which requests must bring one, with limits for each: 'ann: {key: ...,
    requests_per_minute: 60, tokens_per_minute: 20000}', or sha256 (printf %s KEY | sha256sum) in place of key. It is
    read again when it changes; what a key that goes has begun ends with an error."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Names by which requests may call the server (`Host:`), besides localhost, the host to listen on, this machine's
    name and any IP address: '[chat.example.org, "*.example.org"]', or '["*"]' for every name."""
    max_per_client: int | None = None
    """Requests of one client's address that are answered at once; more are refused with status 429. null: max_batch
    and half of max_waiting, so that others have a chance."""
    read_timeout: float = 30.0
    """Seconds in which the head of a request must have come, and then its body."""
    write_timeout: float = 60.0
    """Seconds that a client may leave an answer unread while there is no room for more of it."""
    queue_timeout: float = 60.0
    """Seconds that a request may wait for a place; it is refused with status 503 after them."""
    request_timeout: float = 600.0
    """Seconds that a request may take; what is written after them is lost, and the status 504."""
    drain_timeout: float = 30.0
    """Seconds in which requests are finished after SIGTERM or Ctrl-C, while new ones are refused with status 503 and
    /health says draining; what is left is broken off. A second signal breaks it off at once."""
    request_log: str | None = None
    """File to which a line of JSON is added for each request: its id, route, status, tokens, durations and the name of
    its key, and no texts; "-": standard error."""
    log_texts: bool = False
    """Also log what is asked and written."""
    name: str | None = None
    """What the model is called by requests; null: the name of its run or folder."""
    models: dict[str, str] = field(default_factory=dict)
    """More models by the name that requests call them by, as '{small: checkpoints/sft, other: a.gguf}'. Each is read
    when it is first asked for; `model` is always there."""
    adapters: dict[str, str] = field(default_factory=dict)
    """LoRA adapter folders (ours or PEFT's), or runs with one, by the name that requests call them by, as
    '{polite: checkpoints/polite}'. Each shares the weights of the model that it was trained on, which is one of those
    served."""
    max_models: int = 1
    """Models of `models` in memory at once, besides `model`; the one not asked for the longest makes room, unless it is
    in use: then the request is refused with status 503."""
    max_models_gib: float | None = None
    """Memory in GiB that the models of `models` may take together, with the cache of their texts; null: any."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("max_batch", 1), ("max_waiting", 0), ("default_max_tokens", 1), ("prefill_chunk", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.max_length is not None and self.max_length < 2:
            raise UserError(f"max_length is {self.max_length}; it must be at least 2, or null")
        check_prefix_cache(self.prefix_cache_mib)
        if not 0 <= self.port <= 65535:
            raise UserError(f"port is {self.port}; it must be from 0 to 65535")
        for name in ("api_key", "api_key_file", "keys_file", "request_log", "name"):
            if getattr(self, name) == "":
                raise UserError(f"{name} is empty; give one, or null")
        given = [name for name in ("api_key", "api_key_file", "keys_file") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} cannot be had together; give one of them")
        if self.log_texts and self.request_log is None:
            raise UserError("log_texts has nothing to log to; give request_log as well")
        if self.max_per_client is not None and self.max_per_client < 1:
            raise UserError(f"max_per_client is {self.max_per_client}; it must be at least 1, or null")
        for name in ("read_timeout", "write_timeout", "queue_timeout", "request_timeout", "drain_timeout"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}; it must be a number of seconds above 0")
        self._check_models()
        for host in self.allowed_hosts:
            if not host or set(host) & set("/: "):
                raise UserError(f"allowed_hosts has {host!r}; give names alone, without http:// or a port")

    def _check_models(self) -> None:
        for option, folders in (("models", self.models), ("adapters", self.adapters)):
            for name, folder in folders.items():
                if not name or name != name.strip() or not name.isprintable() or not folder:
                    raise UserError(f"{option} has {name!r}: {folder!r}; give a name on one line and a folder")
        both = sorted({*self.models} & {*self.adapters})
        if both:
            name = both[0]
            raise UserError(
                f"a model and an adapter are called {name}: {self.models[name]} and {self.adapters[name]}; rename one"
            )
        if self.max_models < 1:
            raise UserError(f"max_models is {self.max_models}; it must be at least 1")
        if self.max_models_gib is not None and not 0 < self.max_models_gib < math.inf:
            raise UserError(f"max_models_gib is {self.max_models_gib}; it must be a number above 0, or null")
        if not self.models and (self.max_models != 1 or self.max_models_gib is not None):
            raise UserError("max_models and max_models_gib are for models; give models, or leave them out")
