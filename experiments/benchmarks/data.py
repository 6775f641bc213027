"""The data engine on real web pages: the speed of every step, and what its work is worth to a model.

    apt-get install python3-doc postgresql-doc-15 sqlite3-doc git-doc debian-handbook   # the pages, on Debian 12
    python experiments/benchmarks/data.py            # some 25 minutes on two cores; --pages takes other folders of HTML
    python experiments/benchmarks/data.py --quick    # a few pages and steps, to see that it runs

The pages are written into a WARC file together with planted junk, 5.5 pages for each real one: spam, cookie walls,
lists of links, exact and near copies. Every tenth page is held out: its paragraphs of prose, as trafilatura takes them,
so that they are neither side's own. Then there are three corpora:
- raw: the text of every page, nothing left out;
- web: the steps of experiments/configs/data/web.yaml, published rules for web prose;
- manuals: those of experiments/configs/data/manuals.yaml, whose rules let pages with code and tables pass.
All are encoded with one tokenizer, trained on the raw one, and the same model reads as many tokens of each, in as many
steps, for several seeds. The figure is bits per byte on the held-out paragraphs. `planted_left` counts what is left of
the junk. `pipeline_mb_per_s` is the speed of web.yaml in one process, in megabytes of HTML; `step_mb_per_s` that of
each step. The last line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import tempfile
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from reporting import print_report
from web_pages import write_warc

from lit_llm.config import CorpusConfig, EvaluateConfig, PrepareConfig, TokenizerTrainingConfig, preset_run
from lit_llm.config.recipe import RecipeConfig, SourceConfig
from lit_llm.stages.clean_data import clean_data
from lit_llm.stages.evaluate import evaluate
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.pretrain import pretrain
from lit_llm.stages.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PAGES = tuple(
    f"/usr/share/doc/{folder}"
    for folder in ("python3.11/html", "postgresql-doc-15/html", "sqlite3", "git-doc", "debian-handbook/html/en-US")
)
HELD_OUT = 10
HELD_OUT_PAGES, HELD_OUT_CHARACTERS = 150, 3000
PROSE_WORDS = 20
"""Fewest words of a held-out paragraph, which ends as a sentence does."""
JUNK = {"spam": 3.0, "cookie_wall": 1.0, "link_list": 1.0, "exact_copy": 0.25, "near_copy": 0.25}
"""Planted pages for each real one. Of Common Crawl's documents, 11% are left by RefinedWeb's filters and deduplication
(Penedo et al. 2023, arXiv 2306.01116); here 15% are worth keeping."""
CORPORA = ("raw", "web", "manuals")


def find_pages(folders: list[str], most: int) -> tuple[list[Path], list[Path]]:
    """The pages for training and those that are held out, which a hash of their paths chooses."""
    found = [path for folder in folders for path in sorted(Path(folder).rglob("*.html"))]
    if not found:
        raise SystemExit(f"no HTML pages in {', '.join(folders)}; apt-get install python3-doc postgresql-doc-15")
    found = sorted(found, key=lambda path: blake2b(str(path).encode(), digest_size=8).digest())[:most]
    held_out = len(found) // HELD_OUT
    return found[held_out:], found[:held_out]


def write_held_out(pages: list[Path], folder: Path) -> None:
    """The first paragraphs of prose of some pages, as trafilatura takes them, a file for each page."""
    import trafilatura

    folder.mkdir()
    for number, page in enumerate(pages[:: 1 + len(pages) // HELD_OUT_PAGES]):
        text = trafilatura.extract(page.read_text(encoding="utf-8", errors="replace")) or ""
        prose = [
            line for line in text.splitlines() if len(line.split()) >= PROSE_WORDS and re.search(r"[.!?][\"')]?$", line)
        ]
        if prose:
            (folder / f"{number:05d}.txt").write_text("\n".join(prose)[:HELD_OUT_CHARACTERS], encoding="utf-8")


def make_corpora(warc: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """The corpora, by one process; returns their reports."""
    reports = {}
    for name in CORPORA:
        steps: list[Any] = [{"extract": {"main_content": False}}]
        if name != "raw":
            recipe = ROOT / "experiments" / "configs" / "data" / f"{name}.yaml"
            steps = yaml.safe_load(recipe.read_text(encoding="utf-8"))["steps"]
        sources = [SourceConfig(path=str(warc), name="pages")]
        clean_data(RecipeConfig(sources=sources, steps=steps, output=str(folder / name), num_workers=1))
        reports[name] = json.loads((folder / name / "report.json").read_text(encoding="utf-8"))
    return reports


def planted_left(corpus: Path) -> dict[str, int]:
    """How many planted pages of each kind a corpus has. Of a page and its copies one is to stay, whichever it is."""
    urls = pq.read_table(corpus / "documents", columns=["url"])["url"].to_pylist()
    kinds = (re.match(r"https://planted\.example/(\w+)/", url or "") for url in urls)
    return dict(Counter(kind[1] for kind in kinds if kind))


def step_speeds(report: dict[str, Any]) -> dict[str, float]:
    """Megabytes of text that come to each step in a second of its own time."""
    return {
        step["name"]: round(step["bytes_in"] / 1e6 / step["seconds"], 2) for step in report["steps"] if step["seconds"]
    }


def train(name: str, seed: int, folder: Path, options: argparse.Namespace) -> float:
    """Bits per byte on the held-out pages of a model that has read one of the corpora."""
    run = preset_run(
        options.preset,
        run_name=f"{name}-{seed}",
        output_root=str(folder / "runs"),
        seed=seed,
        data={"paths": [str(folder / f"{name}-shards")], "sequence_length": 256, "batch_size": 16},
        trainer={"accelerator": "cpu", "max_steps": options.steps, "enable_progress_bar": False, "loggers": []},
        samples={"prompts": []},
    )
    pretrain(run)
    found = evaluate(EvaluateConfig(model=str(run.folder), texts=[str(folder / "held_out")], output=str(run.folder)))
    return float(found.report["losses"][0]["bits_per_byte"])


def mean(values: list[float]) -> float:
    """Of no values, not a number."""
    return statistics.mean(values) if values else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="+", default=list(PAGES), help="folders of HTML pages")
    parser.add_argument("--most", type=int, default=1500, help="real pages, chosen by a hash")
    parser.add_argument("--preset", default="modern-1m", help="the model")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps of 16 x 256 tokens")
    parser.add_argument("--seeds", type=int, default=3, help="runs on each corpus; 0: the speeds of the steps alone")
    parser.add_argument("--quick", action="store_true", help="60 pages and 5 steps")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds = 5, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages, held_out = find_pages(options.pages, 60 if options.quick else options.most)
        write_held_out(held_out, folder / "held_out")
        planted = write_warc(folder / "pages.warc.gz", pages, seed=0, junk=JUNK)
        reports = make_corpora(folder / "pages.warc.gz", folder)
        tokenizer, split = str(folder / "tokenizer"), {"validation_fraction": 0.02}
        raw = CorpusConfig(path=str(folder / "raw"), **split)
        train_tokenizer(TokenizerTrainingConfig(corpus=raw, vocab_size=2048, output=tokenizer))
        for corpus in reports:
            text = CorpusConfig(path=str(folder / corpus), **split)
            prepare_data(PrepareConfig(corpus=text, tokenizer=tokenizer, output=str(folder / f"{corpus}-shards")))
        found = {corpus: [train(corpus, seed, folder, options) for seed in range(options.seeds)] for corpus in reports}
        left = {corpus: planted_left(folder / corpus) for corpus in reports}
    web = reports["web"]
    seconds = sum(step["seconds"] for step in web["steps"])
    figures = {
        "pages": len(pages),
        "planted": planted,
        "planted_left": left,
        "documents": {corpus: report["corpus"]["documents"] for corpus, report in reports.items()},
        "megabytes": {corpus: round(report["corpus"]["bytes"] / 1e6, 2) for corpus, report in reports.items()},
        "pipeline_mb_per_s": round(web["steps"][0]["bytes_in"] / 1e6 / seconds, 2),
        "step_mb_per_s": step_speeds(web),
        "dropped": {
            corpus: {
                step["name"]: {reason: what["documents"] for reason, what in step["dropped"].items()}
                for step in reports[corpus]["steps"]
                if step["dropped"]
            }
            for corpus in CORPORA
        },
        "bits_per_byte": found,
        "ratio_to_raw": {corpus: round(mean(values) / mean(found["raw"]), 4) for corpus, values in found.items()},
    }
    rows = [
        [
            corpus,
            f"{figures['documents'][corpus]:,}",
            f"{figures['megabytes'][corpus]:.1f}",
            f"{mean(values):.4f}",
            ", ".join(f"{value:.4f}" for value in values),
        ]
        for corpus, values in found.items()
    ]
    print_report("What cleaning is worth", ["corpus", "documents", "MB", "bits per byte", "by seed"], rows, figures)


if __name__ == "__main__":
    main()
