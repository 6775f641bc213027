"""More than 500 hostile programs in the sandbox: none passes, all end in time, and the host is as it was.

    python experiments/benchmarks/sandbox.py            # some 6 minutes on two cores
    python experiments/benchmarks/sandbox.py --quick    # one program of each kind

The programs (`hostile_programs.py`) fork, allocate, loop, print and write without end, read files, environments and
memory of others, kill, connect, listen, write outside, leave the tests early, patch the interpreter, return objects
that equal everything, print what success looks like, and so on; each comes with a test that passes if it has succeeded.
What is compared before and after (`host_state.py`): processes, files, connections, listening ports, and this process's
own environment, limits, signals, open files and threads. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence

from host_state import prepared_host
from hostile_forms import Hostile
from hostile_programs import hostile_programs
from reporting import print_report

from lit_llm.config import SandboxConfig
from lit_llm.evaluation.sandbox import Outcome, Program, run_program, run_programs


def report(
    hostile: Sequence[Hostile], outcomes: Sequence[Outcome], changed: list[str], seconds: float, plain_seconds: float
) -> None:
    """Print what passed, how the programs of each kind ended, and the figures."""
    for each, outcome in zip(hostile, outcomes, strict=True):
        if outcome.passed:
            print(f"passed: {each.kind}:\n{each.program.source}")
    by_kind: dict[str, Counter[str]] = {}
    slowest: dict[str, float] = {}
    for each, outcome in zip(hostile, outcomes, strict=True):
        by_kind.setdefault(each.kind, Counter())[outcome.outcome] += 1
        slowest[each.kind] = max(slowest.get(each.kind, 0.0), outcome.seconds)
    print_report(
        f"Hostile programs, isolation {outcomes[0].isolation}",
        ("kind", "programs", "how they ended", "longest, s"),
        [
            (
                kind,
                str(sum(counts.values())),
                ", ".join(f"{n} {name}" for name, n in counts.most_common()),
                f"{slowest[kind]:.1f}",
            )
            for kind, counts in by_kind.items()
        ],
        {
            "benchmark": "sandbox",
            "isolation": outcomes[0].isolation,
            "programs": len(outcomes),
            "kinds": len(by_kind),
            "passed": sum(outcome.passed for outcome in outcomes),
            "changed": changed,
            "outcomes": dict(Counter(outcome.outcome for outcome in outcomes).most_common()),
            "longest_seconds": max(outcome.seconds for outcome in outcomes),
            "seconds": round(seconds, 1),
            "seconds_of_a_plain_program": plain_seconds,
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one program of each kind")
    parser.add_argument("--num-workers", type=int, default=2, help="programs at a time")
    parser.add_argument("--isolation", default="auto", help="auto, bwrap or namespaces")
    parser.add_argument("--interpreter", help="the Python that runs the programs")
    parser.add_argument("--wall-seconds", type=float, default=4.0, help="for each program")
    arguments = parser.parse_args()
    config = SandboxConfig(
        isolation=arguments.isolation,
        interpreter=arguments.interpreter,
        wall_seconds=arguments.wall_seconds,
        cpu_seconds=1,
        memory_mb=128,
        processes=8,
        disk_mb=16,
    )
    plain = [run_program(Program("def one(): return 1", "assert one() == 1", ("one",)), config) for _ in range(5)]
    with prepared_host() as host:
        hostile = hostile_programs(host.target)
        if arguments.quick:
            hostile = list({each.kind: each for each in hostile}.values())
        before = host.state()
        start = time.perf_counter()
        outcomes = run_programs([each.program for each in hostile], config, arguments.num_workers)
        seconds = time.perf_counter() - start
        after = host.state()
    changed = [name for name in before if before[name] != after[name]]
    for name in changed:
        print(f"changed: {name}: {before[name]} -> {after[name]}")
    report(hostile, outcomes, changed, seconds, min(outcome.seconds for outcome in plain))


if __name__ == "__main__":
    main()
