"""Programs in the sandbox: what they can do, how they end, and that the host is as it was."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from lit_llm.config import SandboxConfig, UserError
from lit_llm.evaluation.sandbox import Program, run, run_program, run_programs, usable_isolation
from lit_llm.evaluation.sandbox import isolation as isolations

sys.path.append(str(ROOT / "experiments" / "benchmarks"))

from host_state import Host, prepared_host, sandboxed_by
from hostile_programs import Hostile, hostile_programs

# time enough for an honest program on a machine that does much else
PATIENT = SandboxConfig(wall_seconds=60, cpu_seconds=20, memory_mb=256)
# and little, for those that would go on for ever
STRICT = SandboxConfig(wall_seconds=2, cpu_seconds=1, memory_mb=128, processes=8, disk_mb=16)


def isolation_problem(config: SandboxConfig) -> str:
    try:
        usable_isolation(config)
    except UserError as error:
        return str(error)
    return ""


@pytest.fixture(
    autouse=True,
    params=["auto", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bwrap", "namespaces"))],
)
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SandboxConfig:
    """All tests run with what this system takes by itself, and once more with each kind that it has.

    Where root keeps this Python to itself, which bubblewrap cannot do with, they run with the system's.
    """
    pythons = (None, "/usr/bin/python3", "/usr/local/bin/python3") if request.param == "bwrap" else (None,)
    options = [{"isolation": request.param, "interpreter": path} for path in pythons if not path or Path(path).exists()]
    problems = [isolation_problem(SandboxConfig(**each)) for each in options]
    if all(problems):
        pytest.skip(problems[0])
    chosen = options[problems.index("")]
    for name in ("PATIENT", "STRICT"):
        monkeypatch.setitem(globals(), name, replace(globals()[name], **chosen))
    return SandboxConfig(**chosen)


def test_a_program_and_its_tests() -> None:
    """They are as usual: the standard library, a temporary folder, output, and errors that say what is wrong."""
    source = """
import dataclasses, json, statistics, tempfile

@dataclasses.dataclass
class Point:
    x: int

def work(values, *, name="x"):
    with tempfile.NamedTemporaryFile("w+") as file:
        json.dump(values, file)
        file.seek(0)
        print("worked \\x1b[31m on", name)
        return {name: statistics.mean(json.load(file)), "point": dataclasses.astuple(Point(3))}

def fail():
    raise KeyError("where")
"""
    test = """
assert work([1, 2]) == {"x": 1.5, "point": (3,)}
assert work(values, name="y")["y"] == 3
try:
    fail()
except KeyError as error:
    assert "where" in str(error)
else:
    raise AssertionError("no error")
"""
    program = Program(source, test, ("work", "fail"), setup="values = [2, 4]")
    outcome = run_program(program, PATIENT)
    assert (outcome.outcome, outcome.reason) == ("passed", "")
    assert "worked [31m on x\nworked [31m on y\n" in outcome.output and "KeyError: 'where'" in outcome.output
    assert outcome.unprotected == ""
    wrong = run_program(replace(program, setup="values = [2, 5]"), PATIENT)
    assert (wrong.outcome, wrong.reason) == ("failed", 'assert work(values, name="y")["y"] == 3: AssertionError')


@pytest.mark.parametrize(
    ("source", "outcome", "reason"),
    [
        ("def f(:", "error", "SyntaxError"),
        ("1 / 0", "error", "ZeroDivisionError: division by zero"),
        ("x = 1", "failed", "the program defines no f"),
        ("def f(): raise OSError(2, 'lost')", "failed", "lost"),
        ("def f(): raise type('Odd\\nName', (Exception,), {})('why\\n\\x07')", "failed", "Odd Name: why"),
        ("def f(): return 2", "failed", "assert f() == 1: AssertionError"),
        ("import os; os._exit(0)", "exited", "ended by itself before the tests were over (0)"),
        ("def f(): raise SystemExit", "exited", "the program ended with SystemExit"),
        ("import os; os.abort()", "crashed", "SIGABRT"),
        ("def f(): return bytearray(1 << 40)", "memory", "out of memory"),
        ("def f():\n    while True: print('x' * 99999)", "output", "printed more than 64 kB"),
        ("import os\nfor n in range(10**6): os.mkdir(str(n))", ("error", "disk"), ""),
        ("while True: pass", "timeout", "more than 1 s of processor time"),
        ("def f(): return 'x' * (1 << 23)", "failed", "OverflowError"),
    ],
)
def test_how_programs_end(source: str, outcome: str | tuple[str, ...], reason: str) -> None:
    config = replace(PATIENT, output_kb=64, cpu_seconds=1 if outcome == "timeout" else 20)
    got = run_program(Program(source, "assert f() == 1", ("f",)), config)
    assert got.outcome in outcome and reason in got.reason, got
    assert "\n" not in got.reason and "\x07" not in got.reason


@pytest.mark.parametrize(
    ("source", "passed"),
    [
        ("class A:\n    value = 1\n", True),
        ("class A:\n    value = 2\n", False),
        ("import os\nos._exit(0)", False),
        ("class A:\n    @property\n    def value(self): raise SystemExit(0)\n", False),
        ("print({'value': 'token'})\nraise SystemExit(0)", False),
    ],
)
def test_a_test_inside_of_the_program(source: str, passed: bool) -> None:
    outcome = run_program(Program(source, "assert A().value == 1", together=True), PATIENT)
    assert outcome.passed is passed, outcome


def one_of_each(host: Host) -> list[Hostile]:
    return list({each.kind: each for each in reversed(hostile_programs(host.target))}.values())


# those that go on until their time is over
ENDLESS = {"endless", "ignored_signals", "slow_patterns", "many_threads", "deep", "bombs"}


def check_hostile(make: Callable[[Host], list[Hostile]]) -> None:
    with prepared_host() as host:
        programs = make(host)
        before = host.state()
        outcomes = run_programs([each.program for each in programs], STRICT, num_workers=2)
        after = host.state()
    assert [each for each, outcome in zip(programs, outcomes, strict=True) if outcome.passed] == []
    assert {name: (before[name], after[name]) for name in before if before[name] != after[name]} == {}
    # a second more than the limit, and the start on a machine that does much else
    assert max(outcome.seconds for outcome in outcomes) < 60


def test_hostile_programs_of_some_kinds() -> None:
    check_hostile(lambda host: [each for each in one_of_each(host) if each.kind not in ENDLESS])


@pytest.mark.slow
def test_all_hostile_programs(isolation: SandboxConfig) -> None:
    if isolation.isolation == usable_isolation(SandboxConfig()):
        pytest.skip(f"{isolation.isolation} is what auto takes here, which runs them")
    check_hostile(lambda host: hostile_programs(host.target))


def test_a_killed_parent_leaves_no_child(tmp_path: Path, isolation: SandboxConfig) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "from lit_llm.config import SandboxConfig\n"
        "from lit_llm.evaluation.sandbox import Program, run_program, usable_isolation\n"
        f"config = {replace(isolation, wall_seconds=600)!r}\n"
        "usable_isolation(config)\n"
        "print('ready', flush=True)\n"
        "source = 'import os, time\\nif os.fork() == 0: os.setsid()\\ntime.sleep(600)'\n"
        "run_program(Program(source), config)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"ready\n"
        until = time.monotonic() + 60
        # the first process, the program, and the one that it has started
        while len(sandboxed_by(parent.pid)) < 3 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(sandboxed_by(parent.pid)) == 3
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 60
    while sandboxed_by(parent.pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert sandboxed_by(parent.pid) == set()


def test_limits_alone_are_taken_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has neither bubblewrap nor namespaces (here: the kernel's are not reached), programs are refused
    in a line that names the option; with it they run, and the outcome says what they were not kept from."""
    monkeypatch.setattr(run, "_found", {})
    monkeypatch.setattr(isolations, "INSIDE", Path("/nowhere/inside"))
    with pytest.raises(UserError, match="isolation limits, which protects neither files nor") as raised:
        run_program(Program("x = 1"), SandboxConfig())
    assert "\n" not in str(raised.value)
    monkeypatch.undo()
    config = replace(PATIENT, isolation="limits", interpreter=readable_interpreter())
    outcome = run_program(Program("import os\ndef f(): return os.getcwd()", "assert 'program-' in f()", ("f",)), config)
    assert outcome.passed, outcome
    assert "the network" in outcome.unprotected
    source = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(600)\ndef f(): return os.getpid()"
    assert run_program(Program(source, "assert f() == 1", ("f",)), config).outcome == "failed"
    # all that a sandbox forks has its command line
    ours = f'"owner": {os.getpid()},'.encode()
    assert [entry for entry in Path("/proc").glob("[0-9]*/cmdline") if ours in _read(entry)] == []


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def readable_interpreter() -> str | None:
    """One that others than root may read, where we are root."""
    if os.geteuid() != 0:
        return None
    for path in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        config = SandboxConfig(isolation="limits", interpreter=path)
        try:
            if shutil.which(path) and usable_isolation(config):
                return path
        except UserError:
            continue
    pytest.skip("root has no interpreter that others may read")
    return None


def private_interpreter(folder: Path) -> str:
    """This Python once more, as uv keeps one, in a folder that its owner alone can read."""
    prefix, version = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "bin").mkdir(parents=True)
    (folder / "lib").mkdir()
    shutil.copy(Path(sys._base_executable).resolve(), folder / "bin" / version)  # type: ignore[attr-defined]
    for path in (prefix / "lib").glob("*python*"):
        (folder / "lib" / path.name).symlink_to(path)
    folder.chmod(0o700)
    return str(folder / "bin" / version)


def test_what_cannot_be_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="interpreter is /nowhere/python, which is no program"):
        run_program(Program("x = 1"), SandboxConfig(interpreter="/nowhere/python"))
    with pytest.raises(UserError, match="cannot be run"):
        run_program(Program("x = 1"), SandboxConfig(interpreter="/bin/true"))
    if isolations.has_other_users():  # root's programs run as somebody else, who cannot read what root keeps to itself
        python = private_interpreter(tmp_path / "private")
        with pytest.raises(UserError, match=f"cannot read {python} inside .*: give --sandbox.interpreter") as one:
            run_program(Program("x = 1"), SandboxConfig(isolation="limits", interpreter=python))
        assert "\n" not in str(one.value) and str(one.value).startswith("isolation limits does not work on this system")
    with pytest.raises(UserError, match="memory_mb is 1; it must be at least 64"):
        SandboxConfig(memory_mb=1)
    if shutil.which("bwrap") is None:
        with pytest.raises(UserError, match="bwrap, which is not installed: install bubblewrap"):
            run_program(Program("x = 1"), SandboxConfig(isolation="bwrap"))
