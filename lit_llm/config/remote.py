"""How shards that are not on this machine are read."""

from __future__ import annotations

from dataclasses import dataclass

from lit_llm.config.errors import UserError


def is_url(path: str) -> bool:
    """Whether a path names something behind a protocol, as s3://bucket/shards does."""
    return "://" in path


@dataclass
class RemoteConfig:
    """Shards behind a URL: blocks of 256 KiB are fetched when their tokens are needed, and kept on this machine."""

    cache: str | None = None
    """Folder that keeps what was fetched, shared by all processes of a machine; null: ~/.cache/lit_llm/blocks."""
    cache_gib: float = 64.0
    """Most GiB in the cache; what was not used for longest goes first. Below the size of the corpus, a window that is
    no longer kept costs a whole block again."""
    ahead: int = 16
    """Micro-batches of each process whose blocks are fetched before their turn."""
    connections: int = 16
    """Blocks that a process fetches at the same time."""
    retries: int = 6
    """Further tries after a lost connection, an error of the server, or a time-out."""
    retry_seconds: float = 0.5
    """Wait before the first further try; it doubles with each, to 30 s at most."""
    timeout: float = 60.0
    """Seconds that one block may take."""

    def __post_init__(self) -> None:
        for name in ("ahead", "retries", "retry_seconds"):
            if getattr(self, name) < 0:
                raise UserError(f"data.remote.{name} is {getattr(self, name)}; it must be at least 0")
        for name in ("cache_gib", "timeout"):
            if getattr(self, name) <= 0:
                raise UserError(f"data.remote.{name} is {getattr(self, name)}; it must be above 0")
        if self.connections < 1:
            raise UserError(f"data.remote.connections is {self.connections}; it must be at least 1")

    @property
    def cache_bytes(self) -> int:
        """Most bytes in the cache."""
        return int(self.cache_gib * 2**30)
