"""From an ordinary process to one inside of a sandbox, and the way back of the outcome."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from . import namespaces, system
from .supervisor import Supervisor


def main() -> None:
    """Run one program.

    The only argument is JSON: `isolation`, `visible`, `parent`, `result` (where the outcome is written, a descriptor)
    and the limits. The request comes as a line on stdin, which stays open as long as somebody waits for the outcome.
    """
    options = json.loads(sys.argv[1])
    system.die_with_parent()
    if options["parent"] and os.getppid() != options["parent"]:
        return
    root = os.geteuid() == 0
    options["users"] = None, None
    if options["isolation"] == "namespaces":
        if root:
            options["users"] = namespaces.PROGRAM_USER, namespaces.TESTS_USER
        namespaces.unshare(root)
        _start_first_process(options)
    if options["isolation"] == "limits":
        if root:
            options["users"] = tuple(namespaces.OUTSIDE.values())
        system.adopt_orphans()
    _supervise(options, first=options["isolation"] != "limits")


def _start_first_process(options: dict[str, Any]) -> None:
    """Go on as the first process of the new namespace; this one waits for its end, and then ends as well."""
    first = os.fork()
    if first == 0:
        system.die_with_parent()
        namespaces.enter_empty_root(options["visible"], options["disk"])
        return
    os.close(options["result"])
    os.close(0)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(first, signal.SIGKILL))
    # it ends when all that is in the namespace has ended
    _, status = os.waitpid(first, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _supervise(options: dict[str, Any], first: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    supervisor = Supervisor(options, first)
    quiet = os.open(os.devnull, os.O_WRONLY)
    request = json.loads(sys.stdin.buffer.readline())
    for descriptor in (1, 2):
        os.dup2(quiet, descriptor)
    result = supervisor.run(request)
    with os.fdopen(options["result"], "w") as file:
        json.dump(result, file)
    os._exit(0)
