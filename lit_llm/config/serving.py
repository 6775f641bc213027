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
    what is free on the GPU, but no more than 16 full batches take."""
    compile: bool = False
    """Write with code compiled for the model: a minute or more at the start for each of 1, 2, 4, ... max_batch texts at
    once. On the CPU it needs a C++ compiler. With quantize, a head that is the embedding is rounded as well."""
    api_key: str | None = None
    """Requests must bring this key, as `Authorization: Bearer KEY`. Other users of the machine can read it in the list
    of processes: better give api_key_file, or the environment variable LIT_LLM_API_KEY. Without any, anyone may
    ask."""
    api_key_file: str | None = None
    """File with the key that requests must bring."""
    allowed_hosts: list[str] = field(default_factory=list)
    """Names by which requests may call the server (`Host:`), besides localhost, the host to listen on, this machine's
    name and any IP address: '[chat.example.org, "*.example.org"]', or '["*"]' for every name."""
    max_per_client: int | None = None
    """Requests of one client's address that are answered at once; more are refused with status 429. null: max_batch
    and half of max_waiting, so that others have a chance."""
    read_timeout: float = 30.0
    """Seconds in which the head of a request must have come, and then its body."""
    name: str | None = None
    """What the model is called by requests; null: the name of its run or folder."""

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
        for name in ("api_key", "api_key_file", "name"):
            if getattr(self, name) == "":
                raise UserError(f"{name} is empty; give one, or null")
        if self.api_key is not None and self.api_key_file is not None:
            raise UserError("api_key and api_key_file cannot be had together; give one of the two")
        if self.max_per_client is not None and self.max_per_client < 1:
            raise UserError(f"max_per_client is {self.max_per_client}; it must be at least 1, or null")
        if not 0 < self.read_timeout < math.inf:
            raise UserError(f"read_timeout is {self.read_timeout}; it must be a number of seconds above 0")
        for host in self.allowed_hosts:
            if not host or set(host) & set("/: "):
                raise UserError(f"allowed_hosts has {host!r}; give names alone, without http:// or a port")
