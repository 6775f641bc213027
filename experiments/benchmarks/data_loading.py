"""How fast the loader reads shards, and that reading all of them does not grow the process.

    python experiments/benchmarks/data_loading.py            # 2 GB in a temporary folder, about a minute
    python experiments/benchmarks/data_loading.py --quick    # 20 MB

Beside it, in the same run, litdata's StreamingDataset reads the same tokens from its own format (`pip install litdata`;
left out where it is missing), shuffled as it does, within its chunks. And ours goes on at another world size from the
middle: the samples of every later batch are the same, which is shown.

Without workers each reads one whole epoch, every window in shuffled order, and RssAnon + RssFile of ours is watched;
with workers each reads --batches batches. Both give a training int64 inputs and targets. The shards have just been
written, so they come from the page cache: this measures the code, not the disk. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from litdata_loading import litdata_speed
from reporting import print_report

from lit_llm.config import DataConfig
from lit_llm.data.corpus.manifest import Manifest
from lit_llm.data.corpus.shards import ShardWriter
from lit_llm.data.pretraining.data_module import TokenDataModule

VOCAB_SIZE = 50_304
SHARD_TOKENS = 100_000_000


def write_corpus(folder: Path, num_tokens: int) -> None:
    """Shards of uniformly random uint16 tokens."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    block = rng.integers(0, VOCAB_SIZE, 1_000_000, dtype=np.uint16)
    infos = []
    while num_tokens:
        writer = ShardWriter(folder / f"shard_{len(infos):05d}.npy", "uint16")
        size = min(num_tokens, SHARD_TOKENS)
        for start in range(0, size, len(block)):
            writer.append(np.roll(block, int(rng.integers(len(block))))[: size - start], documents=1, num_bytes=0)
        infos.append(writer.close())
        num_tokens -= size
    Manifest("synthetic", VOCAB_SIZE, "uint16", eot_id=0, pad_id=None, shards=infos).save(folder)


def resident_mib() -> float:
    """Anonymous and file-backed resident memory of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon:", "RssFile:"))) / 1024


def measure(path: Path, options: argparse.Namespace, num_workers: int) -> tuple[float, float]:
    """Tokens per second of the loader, and the most that resident memory grew, in MiB."""
    config = DataConfig(
        paths=[str(path)],
        sequence_length=options.sequence_length,
        batch_size=options.batch_size,
        num_workers=num_workers,
    )
    data = TokenDataModule(config, None, seed=0)
    whole_epoch = -(-data.train_dataset.order.num_windows[0] // options.batch_size)
    num_batches = options.batches if num_workers else whole_epoch
    batches = iter(data.make_train_loader(data.train_sampler(0, 1, num_batches + 1)))
    next(batches)  # starts the workers, maps the first shards
    before, peak = resident_mib(), 0.0
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        assert batch["tokens"].shape == (options.batch_size, options.sequence_length)
        if number % 64 == 0:
            peak = max(peak, resident_mib() - before)
    seconds = time.perf_counter() - started
    return num_batches * options.batch_size * options.sequence_length / seconds, max(peak, resident_mib() - before)


def same_samples_at_other_world_sizes(path: Path, options: argparse.Namespace) -> bool:
    """Whether a run that goes on from its tenth batch with 1, 2 or 4 ranks reads what an uninterrupted one reads."""
    config = DataConfig(paths=[str(path)], sequence_length=options.sequence_length, batch_size=8)

    def batches(world_size: int, first: int, last: int) -> list[list[int]]:
        data = TokenDataModule(config, None, seed=0)
        data.samples_consumed = 8 * first
        loaders = [
            data.make_train_loader(data.train_sampler(rank, world_size, last - first)) for rank in range(world_size)
        ]
        tokens = [np.concatenate([batch["tokens"].numpy() for batch in each]) for each in zip(*loaders, strict=True)]
        return [sorted(map(bytes, each)) for each in tokens]

    straight = batches(1, 0, 20)
    return all(batches(world_size, 10, 20) == straight[10:] for world_size in (1, 2, 4))


def of_litdata(tokens: np.ndarray, folder: Path, options: argparse.Namespace, workers: int) -> float | None:
    """Tokens per second of litdata; None, and a line, where it is not installed."""
    folder.mkdir(exist_ok=True)
    batches = options.batches if workers else len(tokens) // (options.sequence_length * options.batch_size)
    try:
        return litdata_speed(tokens, folder, options.sequence_length, options.batch_size, batches, workers)
    except ImportError as error:
        print(f"left out: litdata ({error})")
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 MB of tokens instead of 2 GB")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="loader processes to try")
    parser.add_argument("--batches", type=int, default=1000, help="batches to read with workers")
    parser.add_argument("--batch-size", type=int, default=16, help="windows in a batch")
    parser.add_argument("--sequence-length", type=int, default=1024, help="tokens in a window")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made")
    options = parser.parse_args()

    num_tokens = 10_000_000 if options.quick else 1_000_000_000
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_corpus(Path(folder) / "train", num_tokens)
        rows = {workers: measure(Path(folder), options, workers) for workers in options.workers}
        exact = same_samples_at_other_world_sizes(Path(folder), options)
        shards = sorted((Path(folder) / "train").glob("*.npy"))
        tokens = np.concatenate([np.load(shard) for shard in shards])
        others = {
            workers: of_litdata(tokens, Path(folder) / "litdata", options, workers) for workers in options.workers
        }
    ratios = {workers: rows[workers][0] / other for workers, other in others.items() if other is not None}

    print_report(
        f"{num_tokens * 2 / 1e9:g} GB of shards",
        ["workers", "million tokens/s", "resident growth, MiB", "litdata, million tokens/s", "ours / litdata"],
        [
            [str(workers), f"{speed / 1e6:.1f}", f"{growth:.0f}"]
            + ([f"{others[workers] / 1e6:.1f}", f"{ratios[workers]:.2f}"] if workers in ratios else ["-", "-"])
            for workers, (speed, growth) in rows.items()
        ],
        {
            "tokens_per_second": {str(workers): round(speed) for workers, (speed, _) in rows.items()},
            "resident_growth_mib": round(max(growth for _, growth in rows.values()), 1),
            "corpus_gib": round(num_tokens * 2 / 2**30, 3),
            "litdata_ratio": {str(workers): round(ratio, 3) for workers, ratio in ratios.items()},
            "exact_at_other_world_sizes": exact,
        },
    )


if __name__ == "__main__":
    main()
