"""What this system has to keep a program apart: the command that starts a sandbox, and whether it works here."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lit_llm.config import SandboxConfig, UserError

UNPROTECTED = {
    "bwrap": "",
    "namespaces": "",
    "limits": (
        "limits alone: files that this user may read or write, the network and other processes of the user are open to "
        "a program, and its temporary folder has no bound; only time, memory, processes and the size of files have"
    ),
}
"""What each kind of isolation leaves open, beyond what all do: the kernel itself, and time that can be measured."""

INSIDE = Path(__file__).with_name("inside")
NOBODY = 65534
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/etc/ld.so.cache", "/nix/store")


def has_other_users() -> bool:
    """Whether this process is root, and can have programs run as somebody else.

    Root of a user namespace that has no further users is not root of the system, and need not.
    """
    if os.geteuid() != 0:
        return False
    try:
        ranges = [tuple(map(int, line.split())) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return True
    return any(first < NOBODY < first + count for first, _, count in ranges)


def interpreter_of(config: SandboxConfig) -> str:
    """The interpreter itself, behind the links of virtual environments.

    Raises:
        UserError: there is none at `config.interpreter`.
    """
    # the one that a virtual environment is made from, whose standard library is beside it
    path = config.interpreter or getattr(sys, "_base_executable", sys.executable)
    found = shutil.which(path)
    if found is None:
        raise UserError(f"interpreter is {path}, which is no program")
    return str(Path(found).resolve())


def private_folder(interpreter: str) -> str | None:
    """The folder above an interpreter that keeps users other than its owner out; None where it can be read by all."""
    return next((str(each) for each in reversed(Path(interpreter).parents) if not each.stat().st_mode & 0o001), None)


@functools.cache
def visible_paths(interpreter: str) -> tuple[str, ...]:
    """What an interpreter needs: itself, its standard library and the system's libraries, nothing of the project.

    Raises:
        UserError: it cannot be run.
    """
    script = "import sys, sysconfig, json; print(json.dumps([sys.version_info[:2], sys.base_prefix, *sys.path]))"
    try:
        done = subprocess.run(
            [interpreter, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60, cwd="/"
        )
        version, prefix, *paths = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UserError(f"interpreter {interpreter} cannot be run: {error}") from error
    if version < [3, 10]:
        raise UserError(f"interpreter {interpreter} is Python {'.'.join(map(str, version))}; it must be 3.10 or newer")
    libraries = [library for library in Path(prefix, "lib").glob("lib*.so*") if library.is_file()]
    wanted = [*_LIBRARIES, interpreter, *paths, *map(str, libraries)]
    if "/usr/local" in (prefix, os.path.commonpath([interpreter, "/usr/local"])):
        wanted.append("/usr/local/lib")
    found: list[str] = []
    for path in dict.fromkeys(path for path in wanted if Path(path).exists()):
        if not any(Path(path).is_relative_to(place) and not Path(place).is_symlink() for place in found):
            found.append(path)
    return tuple(found)


def command(isolation: str, interpreter: str, options: dict[str, Any]) -> list[str]:
    """The command that starts a sandbox, before the argument for `inside.main`.

    Raises:
        UserError: bubblewrap is asked for and not installed.
    """
    place = str(INSIDE.parent)
    if isolation != "bwrap":
        return [*_python(interpreter, place), json.dumps(options)]
    program = shutil.which("bwrap")
    if program is None:
        raise UserError(
            "isolation is bwrap, which is not installed: install bubblewrap, or take --sandbox.isolation namespaces"
        )
    arguments = [
        program,
        "--unshare-all",
        "--unshare-user",
        "--die-with-parent",
        "--as-pid-1",
        "--new-session",
        "--cap-drop",
        "ALL",
    ]
    can = _bwrap_options(program)
    arguments += ["--disable-userns"] if "--disable-userns" in can else []
    for path in options["visible"]:
        if Path(path).is_symlink():
            arguments += ["--symlink", str(Path(path).readlink()), path]
        else:
            arguments += ["--ro-bind", path, path]
    for device in ("null", "zero", "full", "random", "urandom"):
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    arguments += ["--symlink", "/tmp", "/dev/shm", "--proc", "/proc", "--ro-bind", str(INSIDE), "/sandbox/inside"]
    arguments += ["--size", str(options["disk"])] if "--size" in can else []
    arguments += ["--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp", "--"]
    return [*arguments, *_python(interpreter, "/sandbox"), json.dumps({**options, "parent": 0})]


def _python(interpreter: str, place: str) -> list[str]:
    # -I would have it ignore PYTHONHASHSEED, which makes the order of sets the same in every run
    start = f"import sys; sys.path[:1] = [{place!r}]; from inside.main import main; sys.path.pop(0); main()"
    return [interpreter, "-s", "-S", "-B", "-c", start]


@functools.cache
def _bwrap_options(program: str) -> frozenset[str]:
    return frozenset(subprocess.run([program, "--help"], capture_output=True, text=True).stdout.split())
