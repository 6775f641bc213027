"""Whether shards come out byte for byte the same however often their preparation is killed.

    python experiments/benchmarks/preparation_kills.py            # 20 kills, two to three minutes
    python experiments/benchmarks/preparation_kills.py --quick    # 2 kills

A corpus of rows and of one text file with many documents is prepared once undisturbed, and once by a process that is
killed (SIGKILL) again and again, each time some milliseconds after it has closed another shard or two: in the middle of
a shard, while one is renamed, before or after its record. It ends with status 1 where a byte differs. The last line of
the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from kills import digests, kill_after
from reporting import print_report

from lit_llm.tokenizer import train_bpe

SCRIPT = Path(__file__).parents[1] / "prepare_data.py"
WORDS = ["the", "naïve", "cat", "sat", "on", "日本", "mat", "and", "then", "went", "home", "\n"]
DOCUMENTS_PER_KILL = 400
SHARD_TOKENS = 10_000


def write_corpus(folder: Path, num_documents: int) -> None:
    """Half of the documents as rows, half in one text file."""
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(20, 200))) + "\n" for _ in range(num_documents)]
    half = num_documents // 2
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:half]))
    (folder / "several.txt").write_text("<|endoftext|>\n".join(texts[half:]), encoding="utf-8")
    train_bpe(texts[:200], 290, show_progress=False).save(folder.parent / "tokenizer")


def command(folder: Path, output: str) -> list[str]:
    """The preparation as a user starts it."""
    options = {
        "corpus.path": folder / "corpus",
        "corpus.validation_fraction": 0.1,
        "tokenizer": folder / "tokenizer",
        "output": folder / output,
        "shard_tokens": SHARD_TOKENS,
    }
    return [
        sys.executable,
        str(SCRIPT),
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 kills instead of --kills")
    parser.add_argument("--kills", type=int, default=20, help="how often the preparation is killed")
    options = parser.parse_args()
    kills, chance = 2 if options.quick else options.kills, random.Random(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "corpus", DOCUMENTS_PER_KILL * (kills + 1))
        subprocess.run(command(folder, "whole"), check=True, capture_output=True)
        done = 0

        def shards() -> int:
            return len(list((folder / "killed" / "train").glob("*.npy")))

        for _ in range(kills):
            process = subprocess.Popen(command(folder, "killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            done += kill_after(process, shards, chance.randint(1, 2), chance.uniform(0.0, 0.004))
        if not (folder / "killed" / "train" / "manifest.json").exists():
            subprocess.run(command(folder, "killed"), check=True, capture_output=True)
        whole, killed = digests(folder / "whole"), digests(folder / "killed")
        written = sum(file.endswith(".npy") for file in whole)
    same = whole == killed
    print_report(
        "preparation under SIGKILL",
        ["kills", "shards", "files", "equal bytes"],
        [[str(done), str(written), str(len(whole)), "yes" if same else "NO"]],
        {"kills": done, "shards": written, "files": len(whole), "equal_bytes": same},
    )
    sys.exit(0 if same and done == kills else 1)


if __name__ == "__main__":
    main()
