"""How fast text becomes ids: ours beside tiktoken on one core, and beside `datasets.map` with `tokenizers`.

    python experiments/benchmarks/bulk_tokenization.py            # the standard library, and a BPE of 8,192 tokens
    python experiments/benchmarks/bulk_tokenization.py --quick    # 1 MB of it, and 1,000 tokens

All use one vocabulary, which is trained first, and one core; the best of --repeats is taken, in turn. Ids are compared
before anything is timed. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import datasets
import numpy as np
import tiktoken
import tokenizers
from reporting import print_report

from lit_llm.data.sources.files import find_files
from lit_llm.tokenizer import Tokenizer, train_bpe
from lit_llm.tokenizer.alphabet import byte_level_bytes
from lit_llm.tokenizer.bulk import GPT2_PATTERN


def read(num_bytes: int) -> list[str]:
    """Files of the standard library, up to a size."""
    texts, size = [], 0
    for path in find_files("stdlib", "the benchmark")[1]:
        if size >= num_bytes:
            break
        texts.append(Path(path).read_text(encoding="utf-8", errors="replace"))
        size += len(texts[-1])
    return texts


def tiktoken_of(tokenizer: Tokenizer) -> tiktoken.Encoding:
    """The same vocabulary for tiktoken, whose ranks are the ids."""
    vocabulary: dict[str, int] = tokenizer.state["model"]["vocab"]
    ranks = {
        byte_level_bytes(token): index for token, index in vocabulary.items() if token not in tokenizer.special_ids
    }
    return tiktoken.Encoding("same", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 MB and 1,000 tokens")
    parser.add_argument("--repeats", type=int, default=3, help="of which the fastest counts")
    options = parser.parse_args()
    texts = read(10**6 if options.quick else 2 * 10**7)
    size = sum(len(text.encode()) for text in texts)
    tokenizer = train_bpe(texts, 1000 if options.quick else 8192)
    other = tiktoken_of(tokenizer)
    plain = tokenizers.Tokenizer.from_str(tokenizer._tokenizer.to_str())
    rows = datasets.Dataset.from_dict({"text": texts})

    def of_datasets() -> None:
        rows.map(
            lambda batch: {"ids": [each.ids for each in plain.encode_batch(batch["text"], add_special_tokens=False)]},
            batched=True,
            remove_columns=["text"],
            load_from_cache_file=False,
            new_fingerprint=f"benchmark{time.perf_counter_ns()}",
        )

    ours = tokenizer.encode_bulk(texts, num_threads=1)
    assert all(np.array_equal(ids, other.encode_ordinary(text)) for ids, text in zip(ours, texts, strict=True))
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: tokenizer.encode_bulk(texts, num_threads=1),
        "tiktoken": lambda: [other.encode_to_numpy(text, disallowed_special=()) for text in texts],
        "datasets.map": of_datasets,
    }
    seconds = dict.fromkeys(ways, float("inf"))
    datasets.disable_progress_bars()
    for _ in range(options.repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name] = min(seconds[name], time.perf_counter() - started)
    speeds = {name: size / each / 1e6 for name, each in seconds.items()}
    print_report(
        f"{size / 1e6:.1f} MB of text on one core",
        ["way", "MB/s", "ours / this"],
        [[name, f"{speed:.1f}", f"{speeds['ours'] / speed:.2f}"] for name, speed in speeds.items()],
        {
            "mb_per_second": {name: round(speed, 2) for name, speed in speeds.items()},
            "tiktoken_ratio": round(speeds["ours"] / speeds["tiktoken"], 3),
            "datasets_ratio": round(speeds["ours"] / speeds["datasets.map"], 3),
        },
    )


if __name__ == "__main__":
    main()
