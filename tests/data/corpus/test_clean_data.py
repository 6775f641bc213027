"""Corpora from recipes: whole, resumable, the same to the byte whatever happens on the way."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import recipe_steps
from run_files import largest_file

from lit_llm.cli.results import show_corpus
from lit_llm.config import (
    ClusterConfig,
    CorpusConfig,
    PrepareConfig,
    RecipeConfig,
    SourceConfig,
    TokenizerTrainingConfig,
    UserError,
    to_plain,
)
from lit_llm.config.lock import locked
from lit_llm.config.recipe import STEPS as STEP_OPTIONS
from lit_llm.data.corpus.documents import Corpus
from lit_llm.data.corpus.recipes.workspace import FILE_OPTIONS
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.stages.clean_data import clean_data
from lit_llm.stages.prepare import prepare_data
from lit_llm.stages.tokenizer import train_tokenizer

STEPS = [{"test_long": {}}, "test_upper", "test_once", {"test_long": {"words": 6}}]


@pytest.fixture(autouse=True)
def known_steps() -> Iterator[None]:
    """A recipe may name the steps of `recipe_steps`."""
    recipe_steps.register()
    yield
    recipe_steps.unregister()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in a folder, among them short ones, repeated ones and broken ones, and a few texts in another."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "rows").mkdir()
    (folder / "texts").mkdir()
    for file in range(6):
        rows: list[Any] = [
            {
                "text": f"{'the cat sat there ' * (1 + number % 3)}{number * (file % 4)}",
                "url": f"https://www.e{file}.org/",
            }
            for number in range(30)
        ]
        rows += [{"text": "too short"}, {"text": "junk"}, {"text": " "}, {"no": 1}]
        (folder / "rows" / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "texts" / f"{file}.txt").write_text(f"A naïve cat, number {file}, went home and slept well. " * 40)
    # What comes before the break counts.
    packed = gzip.compress(json.dumps({"text": "whole"}).encode() + b"\n")
    (folder / "rows" / "6.jsonl.gz").write_bytes(packed + packed[:14])
    return folder


def recipe(raw: Path, output: Path, steps: list[Any] = STEPS, **options: Any) -> RecipeConfig:
    sources = [SourceConfig(str(raw / "rows"), "rows"), SourceConfig(str(raw / "texts"), license="CC0")]
    return RecipeConfig(sources, steps, str(output), **{"num_workers": 1, "part_mib": 0.006, **options})


def documents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((output / "documents").iterdir())}


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    steps = [{**step, "seconds": 0} for step in report["steps"]]
    return {**report, "steps": steps, "command": ""}


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus that one process makes without an interruption."""
    output = tmp_path_factory.mktemp("whole") / "corpus"
    recipe_steps.register()
    clean_data(recipe(raw, output))
    return output


def test_every_document_is_accounted_for(raw: Path, whole: Path) -> None:
    report = json.loads((whole / "report.json").read_text())
    rows, texts = report["sources"]
    assert (rows["documents"], texts["documents"]) == (6 * 32 + 1, 6)
    assert {reason: entry["number"] for reason, entry in rows["skipped"].items()} == {
        "no text": 6,
        "no field 'text'": 6,
        "broken file": 1,
    }
    assert rows["skipped"]["broken file"]["examples"][0]["where"] == "6.jsonl.gz"
    assert len(rows["skipped"]["no text"]["examples"]) == 3
    came, size = rows["documents"] + texts["documents"], rows["bytes"] + texts["bytes"]
    for step in report["steps"]:
        assert (step["documents_in"], step["bytes_in"]) == (came, size)
        assert step["documents_out"] == came - sum(each["documents"] for each in step["dropped"].values())
        came, size = step["documents_out"], step["bytes_out"]
    assert (report["corpus"]["documents"], report["corpus"]["bytes"]) == (came, size)
    long, upper, once, longer = report["steps"]
    short = 6 * 2 + 1  # "too short", "junk" and "whole"; 5 words are enough
    assert long["dropped"]["fewer than 5 words"]["documents"] == short
    assert [example["id"] for example in long["dropped"]["fewer than 5 words"]["examples"]] == [
        "0.jsonl:31",
        "0.jsonl:32",
        "1.jsonl:31",
    ]
    assert upper["counts"]["words in capitals"] == 6 * (10 * (1 + 2 + 3)) + 6 * 40
    different = {(1 + number % 3, number * (file % 4)) for file in range(6) for number in range(30)}
    assert once["documents_out"] == len(different) + 6
    assert once["facts"] == {"clusters": len(different) + 6, "texts": 6 * 30 + 6}
    assert once["counts"]["compared"] == 6 * 31
    assert longer["documents_out"] == len([each for each in different if each[0] > 1]) + 6


def test_the_corpus_is_what_the_report_says(whole: Path) -> None:
    corpus = json.loads((whole / "report.json").read_text())["corpus"]
    rows = [row for path in sorted((whole / "documents").iterdir()) for row in pq.read_table(path).to_pylist()]
    assert len(list((whole / "documents").iterdir())) == 3
    assert len(rows) == corpus["documents"] == sum(corpus["lengths"]["documents"])
    lengths = [len(row["text"]) for row in rows]
    below_100, below_200 = corpus["lengths"]["documents"][:2]
    assert corpus["lengths"]["bounds"][:2] == [100, 200]
    assert below_100 == sum(length < 100 for length in lengths) > 0 == below_200
    assert sum(len(row["text"].encode()) for row in rows) == corpus["bytes"]
    assert len({(row["source"], row["id"]) for row in rows}) == len(rows)
    assert corpus["licenses"] == {"unknown": len(rows) - 6, "CC0": 6}
    assert corpus["domains"]["e1.org"] == sum(row["url"] == "https://www.e1.org/" for row in rows)
    assert rows[0]["id"] == "0.jsonl:2" and rows[-1]["id"] == "5.txt"
    assert json.loads(rows[0]["metadata"]) == {"words": 9}
    assert "CAT" in rows[0]["text"] and "cat" not in rows[0]["text"]


@pytest.mark.parametrize("options", [{"num_workers": 2}, {"num_workers": 4, "keep": "stages"}, {"keep": "stages"}])
def test_the_same_bytes_however_it_is_made(raw: Path, whole: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = clean_data(recipe(raw, tmp_path / "corpus", **options)).report
    assert documents(tmp_path / "corpus") == documents(whole)
    assert without_times(report) == without_times(json.loads((whole / "report.json").read_text()))
    assert (tmp_path / "corpus" / "recipe.yaml").read_bytes() == (whole / "recipe.yaml").read_bytes()


def test_the_tokenizer_and_the_shards_are_made_of_the_documents_alone(whole: Path, tmp_path: Path) -> None:
    """work/ has parquet files, too, and the reports are text."""
    source = CorpusConfig(str(whole), split="hash", validation_fraction=0.1)
    tokenizer = train_tokenizer(TokenizerTrainingConfig(source, vocab_size=280, output=str(tmp_path / "tokenizer")))
    manifests = prepare_data(PrepareConfig(source, str(tmp_path / "tokenizer"), str(tmp_path / "shards")))
    corpus = json.loads((whole / "report.json").read_text())["corpus"]
    assert sum(manifest.documents for manifest in manifests.values()) == corpus["documents"]
    assert sum(manifest.bytes for manifest in manifests.values()) == corpus["bytes"]
    ids = ShardedTokens(tmp_path / "shards" / "train").read(0, manifests["train"].tokens)
    assert tokenizer.decode(ids.tolist()).startswith("the CAT sat there the CAT sat there ")


def test_a_corpus_that_is_not_finished_is_not_read(raw: Path, tmp_path: Path) -> None:
    config = recipe(raw, tmp_path / "corpus", [{"test_long": {"words": 10_000}}])
    with pytest.raises(UserError, match="step 1, test_long, drops everything: all 199 documents"):
        clean_data(config)
    for folder in (tmp_path, tmp_path / "corpus"):
        with pytest.raises(UserError, match="corpus is a corpus that is not finished; run clean_data"):
            Corpus(CorpusConfig(str(folder)))


def folders(output: Path) -> dict[str, int]:
    """When the latest file that each step has left was written."""
    steps = (output / "work").glob("0*")
    return {folder.name: max(path.stat().st_mtime_ns for path in folder.iterdir()) for folder in steps}


def test_a_finished_corpus_is_left_alone(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = recipe(raw, tmp_path / "corpus", STEPS[:2])
    first = clean_data(config)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")}
    capsys.readouterr()
    again = clean_data(config)
    assert (first.is_new, again.is_new, again.report) == (True, False, first.report)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus").rglob("*")} == before
    assert "already; nothing is done" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "corpus" / "work")  # which is of use to a changed recipe alone
    assert not clean_data(config).is_new


@pytest.mark.parametrize(
    ("steps", "line", "kept"),
    [
        ([*STEPS[:3], {"test_long": {"words": 7}}], "step 4 test_long: words 6 -> 7; going on from step 3", 4),
        (
            [STEPS[0], {"test_upper": {"word": "sat"}}],
            "step 2 test_upper: word 'cat' -> 'sat'; going on from step 1",
            2,
        ),
        ([*STEPS[:2], "test_long"], "step 3 was test_once and is test_long; going on from step 2", 3),
        (STEPS[1:2], "step 1 was test_long and is test_upper; going on from the sources as they were read", 1),
        ([*STEPS, "test_upper"], "at the end, test_upper came; going on from step 4", 5),
        (STEPS[:3], "at the end, test_long went; going on from step 3", 4),
    ],
)
def test_a_changed_recipe_goes_on_from_the_last_step_that_did_not_change(
    raw: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: list[Any], line: str, kept: int
) -> None:
    shutil.copytree(whole, tmp_path / "changed")
    before = folders(tmp_path / "changed")
    clean_data(recipe(raw, tmp_path / "changed", steps))
    assert capsys.readouterr().err.startswith(line)
    after = folders(tmp_path / "changed")
    same = [name for name in sorted(after) if after[name] == before.get(name)]
    assert [int(name[:2]) for name in same] == list(range(kept))
    assert len(after) == len(steps) + 1
    if kept in (2, 4):
        clean_data(recipe(raw, tmp_path / "anew", steps))
        assert documents(tmp_path / "changed") == documents(tmp_path / "anew")


CLEAN = """
import signal, sys
sys.path.insert(0, sys.argv[1])
import recipe_steps
from lit_llm.cli import run_command
recipe_steps.register()
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell ignores it
    run_command("clean_data", sys.argv[2:])
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command, with the steps of `recipe_steps`; processes that it starts read the script once more."""
    path = tmp_path_factory.mktemp("script") / "clean_data.py"
    path.write_text(CLEAN)
    return path


def started(script: Path, raw: Path, output: Path, **options: Any) -> subprocess.Popen[str]:
    config = recipe(raw, output, **options)
    values = {**to_plain(config), "sources": json.dumps(to_plain(config)["sources"]), "steps": json.dumps(config.steps)}
    names = ("sources", "steps", "output", "num_workers", "part_mib", "keep")
    words = [word for name in names for word in (f"--{name}", str(values[name]))]
    command = [sys.executable, str(script), str(Path(recipe_steps.__file__).parent), *words]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, recipe_steps.PAUSE: "0.02"},  # so that it has not ended when it is to be stopped
    )


def wait_for_records(process: subprocess.Popen[str], output: Path, more: int) -> None:
    """Waits until a run, which has not ended then, has written so many more records."""

    def records() -> int:
        return sum(1 for _ in output.glob("work/*/part-*.json"))

    enough = records() + more
    while records() < enough:
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)


def test_the_same_bytes_after_kills_with_any_number_of_processes(
    raw: Path, whole: Path, script: Path, tmp_path: Path
) -> None:
    output = tmp_path / "corpus"
    for workers, more in ((1, 2), (2, 3), (4, 5)):
        process = started(script, raw, output, num_workers=workers)
        wait_for_records(process, output, more)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    clean_data(recipe(raw, output))
    assert documents(output) == documents(whole)
    assert (
        json.loads((output / "report.json").read_text())["corpus"]
        == json.loads((whole / "report.json").read_text())["corpus"]
    )
    assert not [path for path in output.rglob("*") if path.name.endswith(".partial")]


def test_control_c_is_a_line_that_says_how_to_go_on(raw: Path, script: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    process = started(script, raw, output, num_workers=2)
    wait_for_records(process, output, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
    out, err = process.communicate()
    assert process.returncode == 130 and not out
    # before it there may be lines of progress, on a slow machine
    assert err.splitlines()[-1] == (
        f"error: interrupted; what is finished stays in {output}/work, and the same command goes on from there"
    )
    assert "Traceback" not in err and err.count("error: ") == 1


def children(pid: int) -> list[int]:
    """Processes that a process has started, and those that they have started."""
    found = [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    return found + [each for child in found for each in children(child)]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers in /proc")
def test_a_killed_worker_is_a_line_and_no_hang(raw: Path, script: Path, tmp_path: Path) -> None:
    output = tmp_path / "corpus"
    process = started(script, raw, output, num_workers=2)
    wait_for_records(process, output, 1)
    names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in children(process.pid)}
    workers = [pid for pid, name in names.items() if "forkserver" in name or "spawn" in name]
    os.kill(max(workers), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1].startswith("error: a worker process was killed, as the system does when memory runs")


def test_a_second_writer_is_refused(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    with locked(tmp_path / "corpus", ""), pytest.raises(UserError, match=r"is in use by process .*another output"):
        clean_data(recipe(raw, tmp_path / "corpus"))


def test_a_full_disk_loses_nothing_that_is_finished(raw: Path, whole: Path, tmp_path: Path) -> None:
    config = recipe(raw, tmp_path / "corpus", part_mib=0.02)
    with largest_file(4000) as limit:
        limit()
        with pytest.raises(UserError, match=r"(too large|No space).*is kept: make room and run the same command again"):
            clean_data(config)
    assert not [path for path in (tmp_path / "corpus").rglob("*") if path.name.endswith(".partial")]
    clean_data(config)
    clean_data(recipe(raw, tmp_path / "other", part_mib=0.02))
    assert documents(tmp_path / "corpus") == documents(tmp_path / "other")


def test_what_others_have_written_is_left_alone(raw: Path, tmp_path: Path) -> None:
    for name in ("notes.txt", "documents/letter.txt", "work/letter.txt"):
        path = tmp_path / name.partition("/")[0].removesuffix(".txt") / name
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        for overwrite in (False, True):
            with pytest.raises(UserError, match=r"has what no recipe has made .*choose another output"):
                clean_data(recipe(raw, tmp_path / name.partition("/")[0].removesuffix(".txt"), overwrite=overwrite))
        assert path.read_text() == "mine"


def test_overwriting_starts_again(raw: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "corpus")
    before = folders(tmp_path / "corpus")
    assert clean_data(recipe(raw, tmp_path / "corpus", STEPS[:1], overwrite=True)).is_new
    after = folders(tmp_path / "corpus")
    assert sorted(after) == ["00-sources", "01-test_long"] and all(after[name] > before[name] for name in after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": []}, "sources is empty; give at least one"),
        ({"sources": [SourceConfig()]}, "source 1 of the recipe has no path"),
        ({"sources": [SourceConfig("a", "x"), SourceConfig("b", "x")]}, "two sources are called 'x'"),
        ({"sources": [SourceConfig("/no/such")]}, "no such file"),
        ({"sources": [SourceConfig(".")], "output": "corpora/a"}, "output corpora/a is inside source ., which would"),
        ({"steps": ["no_such"]}, "step 1 of the recipe, 'no_such', is unknown; the steps are "),
        (
            {"steps": [{"test_long": {"wards": 1}}]},
            "step 1 of the recipe, test_long, has no option wards; it has words",
        ),
        ({"steps": ["test_long", {"test_long": {"words": "x"}}]}, "step 2 of the recipe, test_long: words is 'x'"),
        # What an option must be is said before it is compared to anything.
        ({"steps": [{"near_duplicates": {"bands": "x"}}]}, "near_duplicates: bands is 'x'; it must be a whole number"),
        ({"num_workers": 0}, "num_workers is 0; it must be at least 1"),
        ({"part_mib": 0}, "part_mib is 0; it must be above 0"),
        ({"memory_gib": -1.0}, "memory_gib is -1.0; it must be above 0"),
        ({"cluster": ClusterConfig("gpu")}, "options of cluster are given, but executor is local"),
        ({"executor": "datatrove", "cluster": ClusterConfig(cpus_per_task=2)}, "cluster.cpus_per_task is for SLURM"),
        ({"executor": "datatrove", "cluster": ClusterConfig("gpu")}, "there is no sbatch here"),
    ],
)
def test_what_a_recipe_cannot_be(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        clean_data(RecipeConfig(**{"sources": [SourceConfig(str(raw))], "output": str(tmp_path / "corpus"), **options}))


def test_workers_import_neither_torch_nor_transformers() -> None:
    """Each of them would wait for seconds."""
    code = """
import importlib, sys
import lit_llm.data.corpus.recipes.tasks, lit_llm.data.corpus.recipes.result
from lit_llm.data.cleaning import registry
for place in {**registry._DOCUMENT_STEPS, **registry._CORPUS_STEPS}.values():
    importlib.import_module(place.partition(":")[0])
print([name for name in ("torch", "transformers", "lightning", "datasets") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done


def test_files_that_steps_name_are_part_of_the_recipe(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sites.txt").write_text("e1.org\n")
    config = recipe(raw, tmp_path / "corpus", [{"url_blocklist": {"files": [str(tmp_path / "sites.txt")]}}])
    first = clean_data(config).report["corpus"]["domains"]
    assert "e1.org" not in first and first["e2.org"] == 30
    (tmp_path / "sites.txt").write_text("e1.org\ne2.org\n")
    assert list(clean_data(config).report["corpus"]["domains"]) == ["e0.org", "e3.org", "e4.org", "e5.org"]
    assert "step 1 url_blocklist: files on disk have changed; going on" in capsys.readouterr().err


PLAIN_TEXT_OPTIONS = {
    "action", "detector", "domains", "fields", "keep", "language_field", "languages", "long_lines", "normalization",
    "normalize", "remove", "short", "stop_words", "style", "substrings", "words", "ignored", "word",
}  # fmt: skip


def test_every_option_that_may_name_files_is_known() -> None:
    """Its files belong to what a result depends on; a new option of text is entered here or there."""
    texts = {
        field.name
        for options in STEP_OPTIONS.values()
        for field in dataclasses.fields(options)
        if "str" in str(field.type) or "Literal" in str(field.type)
    }
    assert texts - FILE_OPTIONS - PLAIN_TEXT_OPTIONS == set()


@pytest.mark.parametrize("workers", [1, 2])
def test_with_stages_kept_a_changed_recipe_goes_on_as_well(raw: Path, tmp_path: Path, workers: int) -> None:
    """With one process reading and the steps after it are one pass; with two, parts are read first."""
    output = tmp_path / "corpus"
    clean_data(recipe(raw, output, keep="stages", num_workers=workers))
    left = {path.parent.name for path in output.glob("work/*/*.parquet")}
    assert left == {"02-test_upper"}  # what stands before the step that compares documents
    for steps in ([*STEPS[:3], {"test_long": {"words": 7}}], [{"test_long": {"words": 7}}, *STEPS[1:]]):
        clean_data(recipe(raw, output, steps, keep="stages", num_workers=workers))
        clean_data(recipe(raw, tmp_path / "anew", steps, overwrite=True))
        assert documents(output) == documents(tmp_path / "anew")


def test_files_that_cannot_be_read_are_named_and_a_source_without_documents_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    for number in range(120):
        (tmp_path / "a" / f"{number:03}.txt.bz2").write_bytes(b"junk")
    (tmp_path / "a" / "good.txt").write_text("some text")
    config = RecipeConfig([SourceConfig(str(tmp_path / "a"), "a")], [], str(tmp_path / "c"), 1)
    corpus = clean_data(config)
    lost = corpus.report["sources"][0]["skipped"]["broken file"]
    assert (corpus.report["corpus"]["documents"], lost["number"], len(lost["examples"])) == (1, 120, 100)
    assert [each["where"] for each in lost["examples"]] == [f"{number:03}.txt.bz2" for number in range(100)]
    capsys.readouterr()
    show_corpus(config, corpus)
    out = capsys.readouterr().out
    assert "left out of a  broken file (120): 000.txt.bz2 (Invalid data stream), 001" in out
    assert "004.txt.bz2 (Invalid data stream) and 115 more\n" in out
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.parquet").write_bytes(b"PAR1")
    config.sources.append(SourceConfig(str(tmp_path / "b"), "b"))
    with pytest.raises(UserError, match=r"^source b has no document \(skipped: 1 broken file, as x.parquet \(Parquet"):
        clean_data(config)
    (tmp_path / "b" / "x.parquet").write_bytes(b"")
    config.sources[1].format = "text"
    with pytest.raises(UserError, match=r"^source b has no document \(skipped: 1 no text, as x.parquet\)"):
        clean_data(config)


def test_a_glob_that_finds_the_output_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["some text"]}), tmp_path / "a.parquet")
    config = RecipeConfig([SourceConfig(str(tmp_path / "**" / "*.parquet"))], [], str(tmp_path / "corpus"), 1)
    clean_data(config)
    with pytest.raises(UserError, match=r"^source .*parquet has files of output .*corpus; choose another output"):
        clean_data(config)


def test_the_corpus_of_other_sources_is_not_replaced(raw: Path, tmp_path: Path) -> None:
    first = RecipeConfig([SourceConfig(str(raw / "rows"))], [], str(tmp_path / "corpus"), num_workers=1)
    clean_data(first)
    before = documents(tmp_path / "corpus")
    other = dataclasses.replace(first, sources=[SourceConfig(str(raw / "texts"))])
    with pytest.raises(UserError, match=r"has the corpus of other sources .*--overwrite true"):
        clean_data(other)
    assert documents(tmp_path / "corpus") == before
    clean_data(dataclasses.replace(other, overwrite=True))
    assert documents(tmp_path / "corpus") != before


def test_a_home_folder_is_understood_in_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert SourceConfig("~/texts").path == "/home/someone/texts"
