"""The data engine on real web pages: the speed of every step, and what its work is worth to a model.

    apt-get install python3-doc postgresql-doc-15 sqlite3-doc git-doc debian-handbook   # the pages, on Debian 12
    python experiments/benchmarks/data.py            # some 15 minutes on two cores; --pages takes other folders of HTML
    python experiments/benchmarks/data.py --quick    # a few pages and steps, to see that it runs

The pages are written into a WARC file together with planted junk: spam, walls of links, exact and near copies. Every
tenth page is held out; its text is taken by trafilatura, so that it is neither side's own. Then there are two corpora:
- raw: the text of every page, nothing left out;
- clean: the steps of experiments/configs/data/web.yaml.
Both are encoded with one tokenizer, trained on the raw one, and the same model reads as many tokens of each, in as many
steps, for several seeds. The figure is bits per byte on the held-out pages. `pipeline_mb_per_s` is the speed of the
clean recipe in one process, in megabytes of HTML; `step_mb_per_s` that of each step. The last line of the output is
JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

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


def find_pages(folders: list[str], most: int | None) -> tuple[list[Path], list[Path]]:
    """The pages for training and those that are held out, which a hash of their paths chooses."""
    found = [path for folder in folders for path in sorted(Path(folder).rglob("*.html"))][:most]
    if not found:
        raise SystemExit(f"no HTML pages in {', '.join(folders)}; apt-get install python3-doc postgresql-doc-15")
    digests = {path: blake2b(str(path).encode(), digest_size=2).digest() for path in found}
    held_out = [path for path in found if int.from_bytes(digests[path], "big") % HELD_OUT == 0]
    return [path for path in found if path not in set(held_out)], held_out


def write_held_out(pages: list[Path], folder: Path) -> None:
    """The beginning of the text of some pages, as trafilatura takes it, a file each."""
    import trafilatura

    folder.mkdir()
    for number, page in enumerate(pages[:: 1 + len(pages) // HELD_OUT_PAGES]):
        text = trafilatura.extract(page.read_text(encoding="utf-8", errors="replace")) or ""
        if len(text) > 200:
            (folder / f"{number:05d}.txt").write_text(text[:HELD_OUT_CHARACTERS], encoding="utf-8")


def make_corpora(warc: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Both corpora, by one process; returns their reports."""
    web = yaml.safe_load((ROOT / "experiments" / "configs" / "data" / "web.yaml").read_text(encoding="utf-8"))
    recipes = {"raw": [{"extract": {"main_content": False}}], "clean": web["steps"]}
    reports = {}
    for name, steps in recipes.items():
        sources = [SourceConfig(path=str(warc), name="pages")]
        clean_data(RecipeConfig(sources=sources, steps=steps, output=str(folder / name), num_workers=1))
        reports[name] = json.loads((folder / name / "report.json").read_text(encoding="utf-8"))
    return reports


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", nargs="+", default=list(PAGES), help="folders of HTML pages")
    parser.add_argument("--preset", default="modern-1m", help="the model")
    parser.add_argument("--steps", type=int, default=600, help="optimizer steps of 16 x 256 tokens")
    parser.add_argument("--seeds", type=int, default=3, help="runs on each corpus")
    parser.add_argument("--quick", action="store_true", help="60 pages and 5 steps")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.seeds = 5, 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pages, held_out = find_pages(options.pages, 60 if options.quick else None)
        write_held_out(held_out, folder / "held_out")
        planted = write_warc(folder / "pages.warc.gz", pages, seed=0)
        reports = make_corpora(folder / "pages.warc.gz", folder)
        tokenizer, split = str(folder / "tokenizer"), {"validation_fraction": 0.02}
        raw = CorpusConfig(path=str(folder / "raw"), **split)
        train_tokenizer(TokenizerTrainingConfig(corpus=raw, vocab_size=2048, output=tokenizer))
        for corpus in reports:
            text = CorpusConfig(path=str(folder / corpus), **split)
            prepare_data(PrepareConfig(corpus=text, tokenizer=tokenizer, output=str(folder / f"{corpus}-shards")))
        found = {corpus: [train(corpus, seed, folder, options) for seed in range(options.seeds)] for corpus in reports}
    clean = reports["clean"]
    seconds = sum(step["seconds"] for step in clean["steps"])
    figures = {
        "pages": len(pages),
        "planted": planted,
        "documents": {corpus: report["corpus"]["documents"] for corpus, report in reports.items()},
        "megabytes": {corpus: round(report["corpus"]["bytes"] / 1e6, 2) for corpus, report in reports.items()},
        "pipeline_mb_per_s": round(clean["steps"][0]["bytes_in"] / 1e6 / seconds, 2),
        "step_mb_per_s": step_speeds(clean),
        "dropped": {
            step["name"]: {reason: what["documents"] for reason, what in step["dropped"].items()}
            for step in clean["steps"]
        },
        "bits_per_byte": found,
        "ratio": round(statistics.mean(found["clean"]) / statistics.mean(found["raw"]), 4),
    }
    rows = [
        [
            corpus,
            f"{figures['documents'][corpus]:,}",
            f"{figures['megabytes'][corpus]:.1f}",
            f"{statistics.mean(values):.4f}",
            ", ".join(f"{value:.4f}" for value in values),
        ]
        for corpus, values in found.items()
    ]
    print_report("What cleaning is worth", ["corpus", "documents", "MB", "bits per byte", "by seed"], rows, figures)


if __name__ == "__main__":
    main()
