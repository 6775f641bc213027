"""Whether a corpus comes out byte for byte the same however often clean_data is killed, by any number of processes.

    python experiments/benchmarks/recipe_kills.py            # 20 kills, a few minutes
    python experiments/benchmarks/recipe_kills.py --quick    # 3 kills

A corpus of rows and texts with repeated ones goes through six steps undisturbed, by one process, and once more by 1, 2
or 4 processes that are killed (SIGKILL, the first of them; the others end with it) again and again, each time some
milliseconds after one or several further parts of some step were written: while they are read, indexed, compared or
renamed, before or after their records. It ends with status 1 where a byte of the documents differs, or a document is
not accounted for. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kills import digests, kill_after
from reporting import print_report

SCRIPT = Path(__file__).parents[1] / "clean_data.py"
WORDS = [
    "the",
    "naïve",
    "cat",
    "sat",
    "on",
    "a",
    "日本",
    "mat",
    "and",
    "then",
    "went",
    "home",
    "with",
    "friends",
    "slowly",
]
STEPS: list[Any] = [
    "unicode",
    {"gopher_quality": {"min_words": 20, "min_stop_words": None}},
    "exact_documents",
    {"fineweb_quality": {"min_punctuated_lines": None, "max_line_breaks_per_word": None}},
    "near_duplicates",
    {"gopher_quality": {"min_words": 30, "min_stop_words": None}},
]
DOCUMENTS_PER_KILL = 150
PROCESSES = (1, 2, 4)


def write_sources(folder: Path, num_documents: int) -> None:
    """Half of the documents as rows in several files, half in text files; one in six has been there before."""
    chance = random.Random(0)
    texts: list[str] = []
    for number in range(num_documents):
        if number % 6 == 5:
            texts.append(chance.choice(texts))
            continue
        words = chance.choices(WORDS, k=chance.randint(15, 150))
        texts.append(" ".join(words) + f" {number}.\n")
    folder.mkdir()
    half = num_documents // 2
    for file, begin in enumerate(range(0, half, 100)):
        rows = (json.dumps({"text": text}) + "\n" for text in texts[begin : min(begin + 100, half)])
        (folder / f"rows{file:03d}.jsonl").write_text("".join(rows))
    for file, begin in enumerate(range(half, num_documents, 100)):
        (folder / f"texts{file:03d}.txt").write_text("<|endoftext|>\n".join(texts[begin : begin + 100]))


def command(folder: Path, output: str, processes: int) -> list[str]:
    """The command as a user starts it."""
    options = {
        "sources": json.dumps([{"path": str(folder / "sources"), "name": "sources"}]),
        "steps": json.dumps(STEPS),
        "output": str(folder / output),
        "part_mib": "0.05",
        "num_workers": str(processes),
    }
    return [sys.executable, str(SCRIPT), *(word for name, value in options.items() for word in (f"--{name}", value))]


def adds_up(report: dict[str, Any]) -> bool:
    """Whether every document of the sources is in exactly one row of the report, or in the corpus."""
    came = sum(source["documents"] for source in report["sources"])
    for step in report["steps"]:
        dropped = sum(reason["documents"] for reason in step["dropped"].values())
        if step["documents_in"] != came or step["documents_out"] != came - dropped:
            return False
        came = step["documents_out"]
    return came == report["corpus"]["documents"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 kills instead of --kills")
    parser.add_argument("--kills", type=int, default=20, help="how often the command is killed")
    options = parser.parse_args()
    kills, chance = 3 if options.quick else options.kills, random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_sources(folder / "sources", DOCUMENTS_PER_KILL * (kills + 2))
        subprocess.run(command(folder, "whole", 1), check=True, stdout=subprocess.DEVNULL)
        records = len(list((folder / "whole" / "work").glob("*/*.json")))

        def written() -> int:
            return len(list((folder / "killed" / "work").glob("*/*.json")))

        done = 0
        for kill in range(kills):
            words = command(folder, "killed", PROCESSES[kill % len(PROCESSES)])
            process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            more = chance.randint(1, max(1, (records - written()) // (kills - kill + 1)))
            done += kill_after(process, written, more, chance.uniform(0.0, 0.01))
        subprocess.run(command(folder, "killed", 1), check=True, stdout=subprocess.DEVNULL)
        whole, killed = digests(folder / "whole" / "documents"), digests(folder / "killed" / "documents")
        reports = [json.loads((folder / output / "report.json").read_text()) for output in ("whole", "killed")]
    same = whole == killed and reports[0]["corpus"] == reports[1]["corpus"]
    complete = all(map(adds_up, reports))
    documents = reports[0]["corpus"]["documents"]
    print_report(
        "clean_data under SIGKILL",
        ["kills", "processes", "records", "documents", "parts", "equal bytes", "adds up"],
        [
            [
                str(done),
                "/".join(map(str, PROCESSES)),
                str(records),
                str(documents),
                str(len(whole)),
                "yes" if same else "NO",
                "yes" if complete else "NO",
            ]
        ],
        {
            "kills": done,
            "records": records,
            "documents": documents,
            "parts": len(whole),
            "equal_bytes": same,
            "adds_up": complete,
        },
    )
    sys.exit(0 if same and complete and done == kills else 1)


if __name__ == "__main__":
    main()
