"""The first process inside: it starts the program's process, runs the tests, and says how it went.

The tests run here and not in the program's interpreter. The program's functions are called in the program's process,
and what they return comes back as plain data (`wire`). So nothing that a program does to its own interpreter, to its
`builtins`, to `unittest` or to `==` of its own objects reaches the tests; its process has neither the tests nor the
file that the outcome is written to; and it cannot end or trace this process (the first of a namespace is immune to
signals from inside, and this one has its memory closed). A test that cannot be split so, because it looks at the
program's classes, runs in the program's process after the program, together with a token that it must give back: this
catches a program that ends early or prints what success looks like, but not one that is written to deceive.
"""

from __future__ import annotations

import builtins
import json
import linecache
import os
import select
import signal
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from . import program, system, wire

_TICK_MS = 25
_TAIL = 4000
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Stop(BaseException):
    """The program is ended: the outcome and the reason."""


class Supervisor:
    """One program, its tests and its limits."""

    def __init__(self, options: dict[str, Any], first: bool) -> None:
        """
        Args:
            options: The limits, see `SandboxConfig`; sizes in bytes.
            first: This is the first process of a namespace, which holds nothing but the program's.
        """
        self._options = options
        self._first = first
        self._stopped: Stop | None = None
        self._output = b""
        self._printed = 0
        self._replies = b""
        self._start()

    def _start(self) -> None:
        """Start the program's process, which knows nothing yet."""
        ours, self._requests = os.pipe()
        self._answers, theirs = os.pipe()
        self._prints, output = os.pipe()
        self._this = os.getpid()
        self._process = os.fork()
        if self._process == 0:
            try:
                self._become_program(ours, theirs, output)
            finally:
                os._exit(1)
        for descriptor in (ours, theirs, output):
            os.close(descriptor)
        os.set_blocking(self._requests, False)
        user = self._options["users"][1]
        system.drop_privileges(user, kept=0 if user is None else system.KILL)
        system.die_with_parent()
        system.set_traceable(False)
        # the tests are from a file, and have limits as well
        own = {**self._options, "cpu": int(self._options["wall"]) + 2, "memory": self._options["memory"] + (64 << 20)}
        system.limit_process(own, self._tasks())

    def _tasks(self) -> int:
        return self._options["processes"] + (2 if self._first else _tasks_of_user())

    def _become_program(self, requests: int, replies: int, output: int) -> None:
        os.setsid()
        for target in (1, 2):
            os.dup2(output, target)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        kept = (os.dup2(requests, 100), os.dup2(replies, 101))
        os.closerange(3, 100)
        os.closerange(102, 4096)
        system.drop_privileges(self._options["users"][0])
        system.die_with_parent()
        system.limit_process(self._options, self._tasks())
        system.set_traceable(True)
        for kind in (signal.SIGALRM, signal.SIGTERM):
            signal.signal(kind, signal.SIG_DFL)
        with os.fdopen(kept[0], "rb") as reader, os.fdopen(kept[1], "wb") as writer:
            program.serve(reader, writer)

    def stop(self, outcome: str, reason: str) -> NoReturn:
        """End the program; the first reason counts, whatever the tests make of it."""
        if self._stopped is None:
            self._stopped = Stop(outcome, reason)
        raise self._stopped

    def ask(self, **request: Any) -> Any:
        """Have the program do something, and return its answer.

        Raises:
            Stop: the program has ended, or has passed a limit.
            Exception: the built-in one that the program raised, or RuntimeError with the name of another.
        """
        if self._stopped is not None:
            raise self._stopped
        self._send(json.dumps(request).encode() + b"\n")
        while b"\n" not in self._replies:
            self._wait(0)
        line, _, self._replies = self._replies.partition(b"\n")
        try:
            reply = json.loads(line)
            if "raised" not in reply:
                return wire.unpack(reply["value"])
            name, text = map(str, reply["raised"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self.stop("failed", "the answer of the program cannot be read")
        return self._raise(name, text)

    def _raise(self, name: str, text: str) -> NoReturn:
        if name == "MemoryError":
            self.stop("memory", "out of memory")
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            try:
                error = kind(text)
            except TypeError:
                error = RuntimeError(f"{name}: {text}")
            raise error
        if isinstance(kind, type) and issubclass(kind, BaseException):
            self.stop("exited", f"the program ended with {name}")
        raise RuntimeError(f"{name}: {text}")

    def _send(self, message: bytes) -> None:
        if len(message) > program.MOST_BYTES:
            self.stop("error", f"arguments of {len(message)} bytes; at most {program.MOST_BYTES}")
        view = memoryview(message)
        while view:
            try:
                view = view[os.write(self._requests, view[:65536]) :]
            except BlockingIOError:
                self._wait(select.POLLOUT)
            except BrokenPipeError:
                self._ended()

    def _wait(self, requests: int) -> None:
        """Wait a moment for the program to answer, print or end, and see to its limits."""
        poll = select.poll()
        if requests:
            poll.register(self._requests, requests)
        for descriptor in (self._answers, self._prints, 0):
            poll.register(descriptor, select.POLLIN)
        for descriptor, events in poll.poll(_TICK_MS):
            if descriptor == 0 and events & (select.POLLHUP | select.POLLERR):
                os._exit(1)  # who asked is gone
            elif descriptor == self._answers:
                self._read_answer()
            elif descriptor == self._prints:
                self._read_output()
        self._check_tasks()

    def _read_answer(self) -> None:
        part = os.read(self._answers, 1 << 20)
        self._replies += part
        if len(self._replies) > program.MOST_BYTES:
            self.stop("failed", f"an answer of more than {program.MOST_BYTES} bytes")
        if not part:
            self._ended()

    def _read_output(self) -> None:
        part = os.read(self._prints, 65536)
        if not part:
            time.sleep(_TICK_MS / 1000)  # it has closed its output, and goes on
        self._printed += len(part)
        self._output = (self._output + part)[-_TAIL:]
        if self._printed > self._options["output"]:
            self.stop("output", f"printed more than {self._options['output'] // 1024} kB")

    def _check_tasks(self) -> None:
        tasks = _descendants(self._this)
        if len(tasks) > self._options["processes"] + 1:
            self.stop("processes", f"more than {self._options['processes']} processes")
        if sum(map(_resident, tasks)) > self._options["memory"]:
            self.stop("memory", f"more than {self._options['memory'] >> 20} MB together")

    def _ended(self) -> NoReturn:
        """The program's process has closed its side, or has ended."""
        for _ in range(40):
            process, status, used = os.wait4(self._process, os.WNOHANG)
            if process:
                break
            time.sleep(_TICK_MS / 1000)
        else:
            self.stop("exited", "the program closed its files before the tests were over")
        if not os.WIFSIGNALED(status):
            self.stop("exited", f"the program ended by itself before the tests were over ({os.WEXITSTATUS(status)})")
        kind = os.WTERMSIG(status)
        if kind in (signal.SIGXCPU, signal.SIGKILL) and used.ru_utime + used.ru_stime >= self._options["cpu"] - 0.5:
            self.stop("timeout", f"more than {self._options['cpu']} s of processor time")
        self.stop("crashed", f"the program was ended by {signal.Signals(kind).name}")

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run the program and its tests.

        Args:
            request: `program`, a source; `setup` and `test`, sources that run here; `names`, the program's functions
                that `test` may call; `together`, whether `test` runs in the program's process instead.

        Returns:
            `outcome`, `reason` and `output`, the last that the program printed.
        """
        signal.signal(signal.SIGALRM, lambda *_: self.stop("timeout", f"more than {self._options['wall']:g} s"))
        signal.setitimer(signal.ITIMER_REAL, self._options["wall"])
        outcome, reason = "error", ""
        try:
            self.ask(program=request["program"])
            outcome = "failed"
            if request["together"]:
                self._test_together(request)
            else:
                self._test(request)
            outcome = "passed"
        except Stop:
            pass
        except BaseException as error:
            reason = _describe(error, request["test"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        if self._stopped is not None:
            outcome, reason = self._stopped.args
        with suppress(Stop):
            while select.select([self._prints], [], [], 0)[0] and self._printed <= self._options["output"]:
                before = self._printed
                self._read_output()
                if self._printed == before:
                    break
        self.end()
        return {"outcome": outcome, "reason": reason, "output": self._output.decode("utf-8", "replace")}

    def _test(self, request: dict[str, Any]) -> None:
        space: dict[str, Any] = {"__name__": "test"}
        exec(compile(request["setup"], "<setup>", "exec"), space)
        for name in request["names"]:
            space[name] = lambda *arguments, _name=name, **named: self.ask(
                call=_name, arguments=wire.pack(arguments), named=wire.pack(named)
            )
        linecache.cache["<test>"] = (len(request["test"]), None, request["test"].splitlines(True), "<test>")
        exec(compile(request["test"], "<test>", "exec"), space)

    def _test_together(self, request: dict[str, Any]) -> None:
        token = os.urandom(16).hex()
        if self.ask(test=f"{request['setup']}\n{request['test']}", token=token) != token:
            raise AssertionError("the test was not run to its end")

    def end(self) -> None:
        """End every process of the program."""
        for _ in range(200):
            left = _descendants(self._this)
            for process in left:
                with suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            if not left:
                return
            time.sleep(0.005)


def _describe(error: BaseException, test: str) -> str:
    """An error of a test in one line, with the line of the test that it is from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<test>"]
    sources = test.splitlines()
    place = sources[lines[-1] - 1].strip() if lines and lines[-1] and lines[-1] <= len(sources) else ""
    text = " ".join(str(error).split())
    return ": ".join(part for part in (place, type(error).__name__, text) if part)[:300]


def _descendants(ancestor: int) -> list[int]:
    """All processes that descend from one, by /proc."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208
        if entry.isdigit():
            with suppress(OSError, IndexError, ValueError):
                # the second field is a name that may hold anything, in brackets
                fields = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")[2].split()
                if fields[0] not in "ZX":
                    parents[int(entry)] = int(fields[1])
    found, front = set(), {ancestor}
    while front:
        front = {process for process, parent in parents.items() if parent in front} - found
        found |= front
    return sorted(found)


def _resident(process: int) -> int:
    """Bytes of memory that are a process's own."""
    try:
        _, resident, shared, *_ = map(int, Path(f"/proc/{process}/statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * _PAGE


def _tasks_of_user() -> int:
    """How many tasks this process's user has on the whole system."""
    user, tasks = os.getuid(), 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == user:
                tasks += len(list((entry / "task").iterdir()))
    return tasks
