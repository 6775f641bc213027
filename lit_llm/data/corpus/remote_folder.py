"""A folder behind a URL: parts of its files, fetched through fsspec, with tries after a lost connection."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from lit_llm.config import RemoteConfig, UserError
from lit_llm.config.notices import tell_once

_LONGEST_WAIT = 30.0
_telling = threading.Lock()
_REFUSED = {400, 401, 403, 404, 405, 410, 451}
"""Answers of HTTP that another try does not change."""


class RemoteFolder:
    """A folder behind a URL that fsspec can read: s3://, gs://, hf://, http://, memory://, and so on.

    Args:
        url: of the folder.
        config: how often a failed reading is tried again.
    """

    def __init__(self, url: str, config: RemoteConfig) -> None:
        self.url, self.config = url.rstrip("/"), config

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url}/{name}", self.config)

    @property
    def parent(self) -> RemoteFolder:
        """The folder that holds it."""
        return RemoteFolder(self.url.rpartition("/")[0], self.config)

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """Bytes [start, end) of a file, or all of it.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it may not be read, or could not be after all tries; or the server does not give parts of files.
        """
        url, config, wait = f"{self.url}/{name}", self.config, self.config.retry_seconds
        for left in range(config.retries, -1, -1):
            try:
                data = _read_once(url, start, end, config.timeout)
                if end is not None and start is not None and len(data) < end - start:
                    raise EOFError(f"{len(data)} of {end - start} bytes came")
                break
            except FileNotFoundError:
                raise
            except UserError:
                raise
            except Exception as error:  # each file system has errors of its own
                reason = _reason(error)
                if isinstance(error, PermissionError) or getattr(error, "status", None) in _REFUSED:
                    raise UserError(f"{url} may not be read ({reason}); give this process access to it") from error
                if not left:
                    raise UserError(
                        f"{url} cannot be read, in {config.retries + 1} tries ({reason}); once it can be, the same "
                        "command works, and a run that was under way goes on with --ckpt_path last"
                    ) from error
                with _telling:  # else threads that fail together all tell
                    tell_once(f"{self.url}: reading failed ({type(error).__name__}); trying again")
                time.sleep(wait)
                wait = min(_LONGEST_WAIT, 2 * wait)
        if end is not None and start is not None and len(data) > end - start:
            raise UserError(
                f"{url}: the server gives the whole file where a part is asked for, so that shards cannot be fetched "
                "block by block; use a server that reads ranges, or copy the folder to this machine"
            )
        return data


def _read_once(url: str, start: int | None, end: int | None, timeout: float) -> bytes:
    system = _file_system(url)
    path = system._strip_protocol(url)
    if system.async_impl:
        from fsspec.asyn import sync

        return sync(system.loop, system._cat_file, path, start=start, end=end, timeout=timeout)
    return system.cat_file(path, start=start, end=end)


_systems: dict[tuple[int, str], Any] = {}
"""File systems by process, as a connection does not survive a fork, and by protocol and host."""


def _file_system(url: str) -> Any:
    key = (os.getpid(), "/".join(url.split("/", 3)[:3]))
    if key not in _systems:
        try:
            import fsspec

            _systems[key] = fsspec.core.url_to_fs(url)[0]
        except ImportError as error:
            raise UserError(
                f"{url} cannot be read here: {_reason(error)}; install that package, or the extra data: pip install "
                "'lit-llm[data]'"
            ) from error
        except ValueError as error:
            raise UserError(f"{url} cannot be read: {_reason(error)}") from error
    return _systems[key]


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
