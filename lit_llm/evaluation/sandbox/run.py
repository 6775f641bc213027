"""Programs that a model has written, each run in a sandbox of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from typing import Any

from lit_llm.config import SandboxConfig, UserError
from lit_llm.config.progress import progress
from lit_llm.evaluation.sandbox import isolation as isolations

_GRACE = 5.0
_TAIL = 2000
_MOST_RESULT = 1 << 20


@dataclass(frozen=True)
class Program:
    """A program, and what it has to stand."""

    source: str
    """What the model has written, with all that belongs to it."""
    test: str = ""
    """Passes unless it raises; it calls the program's functions, whose arguments and results are plain data."""
    names: tuple[str, ...] = ()
    """The program's functions that the test calls."""
    setup: str = ""
    """Runs before the test, and defines what the test uses that is not the program's."""
    together: bool = False
    """Run the test inside of the program's process: for tests that look at its classes. A program can deceive it."""


@dataclass(frozen=True)
class Outcome:
    """How a program did."""

    outcome: str
    """passed; failed (a test), error (the program raised before the tests), exited or crashed (it ended before its
    tests were over), or the limit that it passed: timeout, memory, processes, disk, output."""
    reason: str
    """Why it has not passed, in one line."""
    output: str
    """The last that it printed, tracebacks included, without control characters."""
    seconds: float
    """Of wall time, the start of the sandbox included."""
    isolation: str
    """How it was kept apart."""

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"

    @property
    def unprotected(self) -> str:
        """What the sandbox did not protect from; empty for a proper one."""
        return isolations.UNPROTECTED[self.isolation]


def run_programs(programs: Sequence[Program], config: SandboxConfig, num_workers: int = 1) -> list[Outcome]:
    """Run programs, several at a time, and show how far it is; the outcomes are in their order.

    Raises:
        UserError: no isolation that was asked for works on this system.
    """
    config = replace(config, isolation=usable_isolation(config))
    outcomes: dict[int, Outcome] = {}
    with (
        ThreadPoolExecutor(max(1, num_workers)) as pool,
        progress("running programs", len(programs), "programs") as done,
    ):
        jobs = {pool.submit(_run, program, config): index for index, program in enumerate(programs)}
        try:
            for job in as_completed(jobs):
                outcomes[jobs[job]] = job.result()
                done(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [outcomes[index] for index in range(len(programs))]


def run_program(program: Program, config: SandboxConfig) -> Outcome:
    """Run one program.

    Raises:
        UserError: no isolation that was asked for works on this system.
    """
    return _run(program, replace(config, isolation=usable_isolation(config)))


_PROBE = Program("import colorsys\ndef one(): return 1", "assert one() == 1", ("one",))
_found: dict[tuple[str, str], str] = {}
_lock = threading.Lock()


def usable_isolation(config: SandboxConfig) -> str:
    """The isolation that works on this system, of those that the options allow.

    Raises:
        UserError: there is none; the line says why, and which option takes less.
    """
    interpreter = isolations.interpreter_of(config)
    isolations.visible_paths(interpreter)
    with _lock:
        key = (config.isolation, interpreter)
        if key not in _found:
            _found[key] = _first_that_works(config)
        return _found[key]


def _first_that_works(config: SandboxConfig) -> str:
    # root can have its programs run as another user in namespaces that it makes itself
    proper = ["namespaces", "bwrap"] if isolations.has_other_users() else ["bwrap", "namespaces"]
    kinds = proper if config.isolation == "auto" else [config.isolation]
    reasons = []
    for kind in kinds:
        try:
            outcome = _run(_PROBE, replace(config, isolation=kind, wall_seconds=max(30.0, config.wall_seconds)))
        except (UserError, OSError) as error:
            reasons.append(str(error) if isinstance(error, UserError) else f"{kind}: {error}")
            continue
        if outcome.passed:
            return kind
        private = isolations.private_folder(isolations.interpreter_of(config))
        # inside of namespaces it is seen at a place of its own, which all may read
        hidden = private is not None and isolations.has_other_users() and kind != "namespaces"
        hint = (
            f" (programs run as another user than root, who cannot read {config.interpreter or 'this Python'} inside "
            f"{private}: give --sandbox.interpreter one that all can read, as /usr/bin/python3)"
        )
        reasons.append(f"{kind}: {outcome.reason or outcome.outcome}{hint if hidden else ''}")
    if config.isolation == "auto":
        raise UserError(
            f"programs are not run, as nothing here keeps them apart ({'; '.join(reasons)}): install bubblewrap, or "
            "take --sandbox.isolation limits, which protects neither files nor the network"
        )
    raise UserError(f"isolation {config.isolation} does not work on this system: {'; '.join(reasons)}")


def _run(program: Program, config: SandboxConfig) -> Outcome:
    """Run a program in an isolation that is known to work."""
    start = time.monotonic()
    with _folder(config) as folder:
        result, complaint = _exchange(program, config, folder)
    if result is None:
        late = time.monotonic() - start >= config.wall_seconds
        lines = complaint.strip().splitlines()
        reason = f"more than {config.wall_seconds:g} s" if late else printable(lines[-1] if lines else "")
        result = {
            "outcome": "timeout" if late else "crashed",
            "reason": reason or "the sandbox has ended",
            "output": "",
        }
    return Outcome(
        result["outcome"],
        " ".join(printable(result["reason"]).split()),
        printable(result["output"])[-_TAIL:],
        round(time.monotonic() - start, 3),
        config.isolation,
    )


@contextlib.contextmanager
def _folder(config: SandboxConfig) -> Iterator[str]:
    """Where a sandbox begins: a temporary folder where the program cannot have one of its own."""
    if config.isolation != "limits":
        yield "/"
        return
    with tempfile.TemporaryDirectory(prefix="program-", ignore_cleanup_errors=True) as folder:
        if isolations.has_other_users():
            os.chown(folder, isolations.NOBODY, isolations.NOBODY)
        yield folder


def _exchange(program: Program, config: SandboxConfig, folder: str) -> tuple[dict[str, Any] | None, str]:
    """Start a sandbox, hand it the program, and wait for the result; None, and stderr, where there is none."""
    reader, writer = os.pipe()
    process = None
    try:
        process = _start(config, folder, writer)
        os.close(writer)
        writer = -1
        request = {
            "program": program.source,
            "test": program.test,
            "names": program.names,
            "setup": program.setup,
            "together": program.together,
        }
        assert process.stdin is not None and process.stderr is not None
        # stdin stays open: inside, its end means that nobody waits any more
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        text = _read(reader, config.wall_seconds + _GRACE)
        end(process)
        complaint = process.stderr.read(65536).decode("utf-8", "replace") if not text else ""
        return (json.loads(text) if text else None), complaint
    finally:
        for descriptor in (reader, writer):
            if descriptor >= 0:
                os.close(descriptor)
        if process is not None:
            end(process)
            for pipe in (process.stdin, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()


def _start(config: SandboxConfig, folder: str, writer: int) -> subprocess.Popen[bytes]:
    interpreter = isolations.interpreter_of(config)
    others = isolations.has_other_users()
    options = {
        "isolation": config.isolation,
        "visible": isolations.visible_paths(interpreter),
        "parent": os.getpid(),
        "owner": os.getpid(),  # stays in the command line, by which one finds out whose a sandbox is
        "root": others,
        "result": writer,
        "wall": config.wall_seconds,
        "cpu": config.cpu_seconds,
        "memory": config.memory_mb << 20,
        "processes": config.processes,
        "disk": config.disk_mb << 20,
        "open_files": config.open_files,
        "output": config.output_kb << 10,
    }
    home = folder if config.isolation == "limits" else "/tmp"
    environment = {"HOME": home, "TMPDIR": home, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    # bubblewrap maps one user only, and what the kernel allows root must not be the program's
    nobody = {"user": isolations.NOBODY, "group": isolations.NOBODY, "extra_groups": []}
    user: dict[str, Any] = nobody if others and config.isolation == "bwrap" else {}
    return subprocess.Popen(
        isolations.command(config.isolation, interpreter, options),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment,
        pass_fds=[writer],
        start_new_session=True,
        **user,
    )


def _read(descriptor: int, seconds: float) -> bytes:
    """What comes until the other side is closed, at most for so long."""
    until, parts, size = time.monotonic() + seconds, [], 0
    while size < _MOST_RESULT and (left := until - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            part = os.read(descriptor, 65536)
            if not part:
                return b"".join(parts)
            parts.append(part)
            size += len(part)
    return b""


def end(process: subprocess.Popen[bytes]) -> None:
    """See that a sandbox and everything in it has ended."""
    for kill in (None, process.terminate, process.kill):
        if kill is not None:
            kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0 if kill is None else 5.0)
            return


def printable(text: str) -> str:
    """A text without control characters, which would do something to a terminal, but with its lines."""
    return "".join(character for character in text if character.isprintable() or character in "\n\t")
