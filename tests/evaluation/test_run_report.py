"""report.md."""

from __future__ import annotations

from conftest import MakeRun

from lit_llm.evaluation.run_report import write_report
from lit_llm.evaluation.tables import markdown_table
from lit_llm.stages.pretrain import pretrain


def test_table() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"


def test_contents(make_run: MakeRun) -> None:
    config = make_run("named", model={"norm": "rmsnorm", "tie_word_embeddings": True})
    result = pretrain(config)
    report = (config.folder / "report.md").read_text()
    assert report.startswith("# named\n")
    # embedding 400 x 32; each of two blocks: q, k, v, o, three matrices of SwiGLU, two norms; the last norm
    parameters = 400 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert f"{parameters:,} parameters: 2 layers, width 32, 4 heads, vocabulary 400" in report
    assert "6 steps of 4 rows, 768 tokens" in report
    assert "adamw, schedule cosine, precision 32-true" in report
    for name in ("train/loss", "val/loss", "val/perplexity", "val/bits_per_byte"):
        assert f"| {name} | {result.metrics[name]:.4f} |" in report
    assert f"{result.tokens_per_second:,.0f} tokens/s" in report
    assert result.samples[0].startswith("def ")
    for line in result.samples[0].splitlines():
        assert f"    {line}\n" in report


def test_more_sections(make_run: MakeRun) -> None:
    config = make_run(trainer={"max_steps": 2})
    write_report(config, pretrain(config), [("Against baselines", markdown_table(["x"], [["7"]]))])
    assert "## Against baselines\n\n| x |\n| --- |\n| 7 |\n" in (config.folder / "report.md").read_text()
