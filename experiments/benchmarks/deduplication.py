"""How fast duplicates are found, in what memory, on what disk, and whether they are; beside datatrove's own MinHash.

    python experiments/benchmarks/deduplication.py                          # 1, 10 and 100 MB, about 5 minutes
    python experiments/benchmarks/deduplication.py --sizes 1 10 100 1000    # about 10 minutes
    python experiments/benchmarks/deduplication.py --quick                  # 1 MB

The corpus is the Python code of the installed packages in documents of some 4 kB, and, where that is not enough, the
same in other alphabets; a twentieth are exact copies of earlier documents, a twentieth have one word in a hundred
replaced. Two kinds of pairs are planted in it: near-duplicates, and documents that have a quarter of their text in
common. It is streamed from disk. Every measurement is the processor time of one worker in a process of its own, without
that of reading.

datatrove splits text with spaCy, which few machines have: here it splits at white space, which is faster.
Without datatrove or rensa the lines that need them are left out. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import resource
import string
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from reporting import print_report

from lit_llm.config.duplicates import ExactDocumentsConfig, ExactLinesConfig, NearDuplicatesConfig
from lit_llm.data.cleaning.duplicates.minhash import MinHash
from lit_llm.data.cleaning.registry import build_step
from lit_llm.data.cleaning.step import CorpusStep
from lit_llm.data.sources.document import SourceDocument

DOCUMENT_CHARACTERS = 4000
PART_BYTES = 32 * 2**20
PLANTED = 200
"""Pairs of each kind, and 20 at 1 MB."""
STEPS = {
    "exact_documents": ExactDocumentsConfig(),
    "exact_lines": ExactLinesConfig(),
    "near_duplicates": NearDuplicatesConfig(),
}


# The corpus


def code() -> Iterator[str]:
    """The installed Python code in pieces of about the length of a document, again and again in other alphabets."""
    files = sorted(Path(np.__file__).parents[1].rglob("*.py"))
    letters = string.ascii_letters
    for turn in count():
        alphabet = str.maketrans(
            letters, "".join(random.Random(turn).sample(letters, len(letters))) if turn else letters
        )
        for path in files:
            text = path.read_text(encoding="utf-8", errors="replace").translate(alphabet)
            start = 0
            while len(text) - start > DOCUMENT_CHARACTERS // 2:
                end = text.find("\n", start + DOCUMENT_CHARACTERS)
                end = len(text) if end < 0 else end + 1
                yield text[start:end]
                start = end


def with_other_words(text: str, generator: random.Random) -> str:
    """The text with one word in a hundred replaced."""
    words = text.split(" ")
    for _ in range(max(1, len(text.split()) // 100)):
        words[generator.randrange(len(words))] = f"other{generator.randrange(10**6)}"
    return " ".join(words)


def planted(number: int) -> Iterator[tuple[str, str]]:
    """Names and texts of pairs: same-0a and same-0b are near-duplicates, other-0a and other-0b are not."""
    generator = random.Random(0)

    def words(length: int) -> list[str]:
        return [f"{generator.randrange(16**5):05x}" for _ in range(length)]

    for pair in range(number):
        text = words(600)
        yield f"same-{pair}a", " ".join(text)
        for place in generator.sample(range(600), 6):
            text[place] = "replaced"
        yield f"same-{pair}b", " ".join(text)
        begin = words(150)
        for side in "ab":
            yield f"other-{pair}{side}", " ".join(begin + words(450))


def pairs_in(size: int) -> int:
    """How many pairs of each kind there are in so many bytes."""
    return min(PLANTED, max(1, size // 50_000))


def corpus(size: int) -> Iterator[tuple[str, str]]:
    """Names and texts of `size` bytes of documents, with the pairs among them."""
    generator = random.Random(0)
    pairs = list(planted(pairs_in(size)))
    generator.shuffle(pairs)
    every = max(1, size // DOCUMENT_CHARACTERS // len(pairs) // 2)
    recent: list[str] = []
    written = 0
    for number, fresh in enumerate(code()):
        if number % every == 0 and pairs:
            name, text = pairs.pop()
            written += len(text)
            yield name, text
        drawn = generator.random()
        text = fresh
        if recent and drawn < 0.1:
            text = generator.choice(recent)
            text = text if drawn < 0.05 else with_other_words(text, generator)
        elif len(recent) < 1000:
            recent.append(fresh)
        else:
            recent[generator.randrange(1000)] = fresh
        written += len(text.encode())
        yield str(number), text
        if written >= size and not pairs:
            return


def write_corpus(folder: Path, size: int) -> None:
    """The corpus in parts, one parquet file each."""
    schema = pa.schema([("id", pa.string()), ("text", pa.large_string())])
    rows: list[tuple[str, str]] = []
    parts, held = 0, 0

    def write() -> None:
        table = pa.table(list(zip(*rows, strict=True)), schema=schema)
        pq.write_table(table, folder / f"{parts:05d}.parquet", row_group_size=256)

    for name, text in corpus(size):
        rows.append((name, text))
        held += len(text)
        if held >= PART_BYTES:
            write()
            rows, parts, held = [], parts + 1, 0
    if rows:
        write()


class Reader:
    """Documents of a part, and the seconds that it took to read them."""

    def __init__(self, folder: Path) -> None:
        self.parts = sorted(folder.glob("*.parquet"))
        self.seconds, self.documents, self.bytes = 0.0, 0, 0

    def read(self, part: int, make: Callable[[str, str], Any]) -> Iterator[Any]:
        """Yields the documents of a part, each made from its name and text."""
        clock = time.process_time()
        for batch in pq.ParquetFile(self.parts[part]).iter_batches(256, use_threads=False):
            for name, text in zip(*(batch.column(i).to_pylist() for i in range(2)), strict=True):
                document = make(name, text)
                self.documents += 1
                self.bytes += len(text.encode())
                self.seconds += time.process_time() - clock
                yield document
                clock = time.process_time()
        self.seconds += time.process_time() - clock


# What is measured, each in a process of its own


def source_document(name: str, text: str) -> SourceDocument:
    return SourceDocument(name, "packages", text, "")


def serial(function: Callable[[Any], None], items: Sequence[Any]) -> None:
    for item in items:
        function(item)


def run_ours(name: str, reader: Reader, folder: Path, memory_bytes: int) -> Iterator[str]:
    """Runs a step, and yields the names of the documents that stay."""
    step = build_step(name, STEPS[name])
    assert isinstance(step, CorpusStep)
    parts = len(reader.parts)
    for part in range(parts):
        step.index(reader.read(part, source_document), part, folder)
    step.decide(parts, folder, memory_bytes, serial)
    for part in range(parts):
        for document, reason in step.apply(reader.read(part, source_document), part, folder):
            if reason is None:
                yield document.id


class _WhiteSpace:
    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def run_datatrove(reader: Reader, folder: Path) -> Iterator[str]:
    """Runs the four stages of datatrove's MinHash, and yields the names of the documents that stay."""
    import xxhash
    from datatrove.data import Document
    from datatrove.pipeline.dedup import minhash as module
    from datatrove.utils.logging import logger

    logger.remove()
    logging.disable()
    module.load_word_tokenizer = lambda language: _WhiteSpace()
    module.tqdm = lambda items, **options: items
    names = [str(folder / name) for name in ("signatures", "pairs", "removed")]
    config, parts = module.MinhashConfig(), len(reader.parts)

    def documents(part: int) -> Iterable[Any]:
        return reader.read(part, lambda name, text: Document(text=text, id=name))

    for part in range(parts):
        signature = module.MinhashDedupSignature(names[0], config)
        # What it has by default hands a string to xxhash, which takes bytes alone since version 4.
        signature._hash_func = lambda text: xxhash.xxh64_intdigest(text.encode())
        signature.run(documents(part), part, parts)
    for bucket in range(config.num_buckets):
        module.MinhashDedupBuckets(names[0], names[1], config=config).run(None, bucket, config.num_buckets)
    module.MinhashDedupCluster(names[1], names[2], config=config).run(None, 0, 1)
    for part in range(parts):
        for document in module.MinhashDedupFilter(names[2]).run(documents(part), part, parts):
            yield document.id


def measure(name: str, corpus_folder: Path, pairs: int, scratch: Path, memory_bytes: int) -> dict[str, Any]:
    """Speed, memory and result of one way to find duplicates."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        reader = Reader(corpus_folder)
        before, started = resident_mib(), time.process_time()
        if name == "datatrove":
            kept = run_datatrove(reader, Path(folder))
        else:
            kept = run_ours(name, reader, Path(folder), memory_bytes)
        stay = {document for document in kept if document.startswith(("same", "other"))}
        seconds = time.process_time() - started - reader.seconds
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    number = reader.documents // 2
    return {
        "mb_per_second": reader.bytes / 2 / 1e6 / seconds,
        "seconds": seconds,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before,
        "documents": number,
        "bytes_per_document": reader.bytes / 2 / number,
        "disk_per_document": disk / number,
        "pairs": pairs,
        "pairs_found": sum(not {f"same-{i}a", f"same-{i}b"} <= stay for i in range(pairs)),
        "pairs_wrongly_removed": sum(not {f"other-{i}a", f"other-{i}b"} <= stay for i in range(pairs)),
    }


def resident_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# The S-curve


def s_curve(pairs: int) -> dict[str, dict[str, float]]:
    """How many of so many pairs of sets with a given Jaccard similarity are found: in theory, by us, by rensa."""
    ours = MinHash(14, 8, seed=1)
    curve = {}
    for jaccard in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9):
        common = round(40 * jaccard)
        half = common + (40 - common) // 2
        members = np.random.default_rng(common).integers(0, 2**32, (pairs, 40), np.uint32)
        sides = [members[:, :half], np.concatenate([members[:, :common], members[:, half:]], axis=1)]
        methods: dict[str, Callable[..., np.ndarray]] = {"ours": ours.signatures}
        if find_spec("rensa"):
            methods["rensa"] = _rensa_signatures
        found = {"theory": 1 - (1 - jaccard**8) ** 14}
        for name, method in methods.items():
            signed = [method(side.ravel(), np.arange(pairs + 1) * side.shape[1]) for side in sides]
            bands = [ours.band_hashes(signatures) for signatures in signed]
            found[name] = float((bands[0] == bands[1]).any(axis=1).mean())
        curve[f"{jaccard:g}"] = {name: round(share, 4) for name, share in found.items()}
    return curve


def _rensa_signatures(hashes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(hashes.astype(np.uint64), starts.astype(np.uint64), 112, 1)
    return np.array(matrix.to_rows(), np.uint32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 MB and few pairs of sets")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100], help="MB of text")
    parser.add_argument("--datatrove-up-to", type=int, default=100, help="MB of text that datatrove is given at most")
    parser.add_argument("--memory-mib", type=int, default=256, help="what our comparison may hold")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary folder is made")
    options = parser.parse_args()
    sizes = [1] if options.quick else options.sizes

    rows: list[list[str]] = []
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        for size in sizes:
            folder = Path(scratch) / f"corpus-{size}"
            folder.mkdir()
            in_own_process(write_corpus, folder, size * 10**6)
            names = list(STEPS)
            if find_spec("datatrove") and size <= options.datatrove_up_to:
                names.append("datatrove")
            for name in names:
                arguments = (name, folder, pairs_in(size * 10**6), Path(scratch), options.memory_mib * 2**20)
                found = in_own_process(measure, *arguments)
                figures[f"{size}/{name}"] = found
                rows.append(_row(size, name, found))
                print(" ".join(rows[-1]), flush=True)
    curve = s_curve(1000 if options.quick else 20_000)
    largest = figures[f"{sizes[-1]}/near_duplicates"]
    documents = 1e12 / largest["bytes_per_document"]
    on_paper = {
        "documents": round(documents),
        "disk_gb": round(documents * largest["disk_per_document"] / 1e9, 1),
        "disk_bytes_per_document": round(largest["disk_per_document"], 1),
        "mapped_gb": round(documents * 28 / 1e9, 1),
        "core_hours": round(1e12 / 1e6 / largest["mb_per_second"] / 3600, 1),
    }
    print_report(
        "duplicates",
        ["MB", "by", "MB/s", "peak MiB", "disk B/document", "planted pairs found", "distinct pairs removed"],
        rows,
        {
            "measured": {
                name: {key: round(value, 2) for key, value in found.items()} for name, found in figures.items()
            },
            "ratio_to_datatrove": {
                str(size): round(
                    figures[f"{size}/near_duplicates"]["mb_per_second"] / figures[f"{size}/datatrove"]["mb_per_second"],
                    2,
                )
                for size in sizes
                if f"{size}/datatrove" in figures
            },
            "s_curve": curve,
            "terabyte_on_paper": on_paper,
        },
    )


def _row(size: int, name: str, found: dict[str, Any]) -> list[str]:
    pairs = [f"{found[key]} of {found['pairs']}" for key in ("pairs_found", "pairs_wrongly_removed")]
    return [
        str(size),
        name,
        f"{found['mb_per_second']:.1f}",
        f"{found['peak_mib']:.0f}",
        f"{found['disk_per_document']:.0f}",
        *(pairs if name in ("near_duplicates", "datatrove") else ["", ""]),
    ]


if __name__ == "__main__":
    main()
