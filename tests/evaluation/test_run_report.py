"""report.md and report.html."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from stage_runs import make_stage, run_stage

from lit_llm.config import PretrainConfig, SampleConfig, SamplingConfig
from lit_llm.config.notices import with_pictures
from lit_llm.data.corpus.shards import ShardedTokens
from lit_llm.evaluation import pages, run_report
from lit_llm.evaluation.pages import from_markdown, page
from lit_llm.evaluation.run_report import duration, write_report
from lit_llm.evaluation.tables import markdown_table
from lit_llm.stages.pretrain import pretrain
from lit_llm.training.run import RunResult
from lit_llm.training.step_lines import read_step_lines


def test_table() -> None:
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
    assert markdown_table(["a"], [["x|y\nz"]]).splitlines()[-1] == "| x\\|y z |"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, shards: Path) -> tuple[PretrainConfig, RunResult]:
    """A run whose name and prompt are markup."""
    from conftest import make_run as maker

    make = maker.__wrapped__(shards, tmp_path_factory.mktemp("reported"))
    samples = SampleConfig(["def ", "<script>alert(1)</script>"], SamplingConfig(max_new_tokens=4))
    model = {"norm": "rmsnorm", "tie_word_embeddings": True, "max_position_embeddings": 64}
    trainer = {"max_steps": 4, "val_every_n_steps": 2}
    config = make("<b>named</b>", model=model, samples=samples, trainer=trainer)
    return config, pretrain(config)


def test_contents(trained: tuple[PretrainConfig, RunResult]) -> None:
    config, result = trained
    report = (config.folder / "report.md").read_text()
    assert report.startswith("# <b>named</b>\n")
    # embedding 400 x 32; each of two blocks: q, k, v, o, three matrices of SwiGLU, two norms; the last norm
    parameters = 400 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert f"{parameters:,} parameters: 2 layers, width 32, 4 heads, vocabulary 400" in report
    assert "4 steps of 4 rows, 512 tokens" in report
    assert "adamw, schedule cosine, precision 32-true" in report
    for name in ("train/loss", "val/loss", "val/perplexity", "val/bits_per_byte"):
        assert f"| {name} | {result.metrics[name]:.4f} |" in report
    assert f"{result.tokens_per_second:,.0f} tokens/s" in report
    assert result.samples[0].startswith("def ")
    for line in result.samples[0].splitlines():
        assert f"    {line}\n" in report
    lines = {line["step"]: line for line in read_step_lines(config.folder / "metrics.jsonl")}
    best = min((2, 4), key=lambda step: lines[step]["val/loss"])
    assert f"| best checkpoint | step {best}, val/loss {lines[best]['val/loss']:.4f} |" in report
    assert "| last checkpoint | step 4 |" in report and f"| device | {result.facts.device} |" in report
    assert re.search(r"\| time \| \d+\.\d s, ", report) and result.facts.seconds >= lines[4]["seconds"]
    for split in ("train", "validation"):
        manifest = ShardedTokens(Path(config.data.paths[0]) / split).manifest
        row = f"| {split} | {Path(config.data.paths[0]) / split} | {manifest.tokens:,} tokens of "
        assert f"{row}{manifest.documents:,} documents | {manifest.digest} |" in report
    steps = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|", report, re.MULTILINE)
    assert steps == [(str(n), f"{lines[n]['train/loss']:.4g}", f"{lines[n]['val/loss']:.4g}") for n in (2, 4)]
    assert re.findall(r"^\| (\d+) \|", report, re.MULTILINE) == [str(n) for n in lines]  # two validations are few
    earlier = read_step_lines(config.folder / "samples.jsonl")[0]
    assert report.index("## Earlier samples\n\n### Step 2\n") < report.index("## Configuration")
    assert earlier["step"] == 2 and f"    {earlier['samples'][0].splitlines()[0]}\n" in report
    configuration = (config.folder / "config.yaml").read_text().splitlines()
    assert report.endswith("\n".join(f"    {line}" for line in configuration) + "\n")


class Tags(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_everything_and_loads_nothing(trained: tuple[PretrainConfig, RunResult]) -> None:
    config, result = trained
    text = (config.folder / "report.html").read_bytes().decode()  # with the line ends of the samples
    found = Tags(text)
    assert not {"script", "b", "img", "iframe", "object"} & {tag for tag, _ in found.tags}
    places = [value for _, values in found.tags for name, value in values.items() if name in ("href", "src")]
    assert places == ["data:,"] and "url(" not in text and "@import" not in text
    assert "<b>named</b>" in found.text and "<script>alert(1)</script>" in found.text
    pictures = [ElementTree.fromstring(part) for part in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    titles = [picture[0].text for picture in pictures]
    assert titles[:4] == ["Loss", "Learning rate", "Gradient norm", "Speed"]
    assert {"perplexity", "bits_per_byte"} < set(titles)
    assert result.facts.data[0].digest in found.text and result.facts.device in found.text
    for line in read_step_lines(config.folder / "samples.jsonl"):
        assert f"step {line['step']}" in found.text
        assert all(with_pictures(sample) in found.text for sample in line["samples"])
    # a model without much training may write bytes that a page or a terminal takes for orders
    controls = set(map(chr, range(32))) - {"\n", "\t"}
    for name in ("report.html", "report.md"):
        assert not set((config.folder / name).read_bytes().decode()) & controls
    assert "learning_rate: 0.003" in found.text
    # the report is the last thing that a run writes
    times = [(config.folder / name).stat().st_mtime_ns for name in ("report.html", "report.md")]
    assert times == sorted(times)


def test_few_validations_keep_their_values_among_other_steps() -> None:
    lines = [
        {"step": n, "train/loss": 9 - n / 100} | ({"val/loss": 5.5} if n in (38, 90) else {}) for n in range(1, 101)
    ]
    rows = [row.split(" | ") for row in run_report._curves_table(lines).splitlines()[2:]]
    steps = [int(row[0].strip("| ")) for row in rows]
    assert len(steps) == 14 and steps == sorted(steps) and {1, 38, 90, 100} <= set(steps)
    assert [step for step, row in zip(steps, rows, strict=True) if "5.5" in row[2]] == [38, 90]


@pytest.mark.parametrize(
    ("stage", "charts"),
    [
        ("reward", ["Loss", "Accuracy", "Margin", "Learning rate"]),
        ("dpo", ["Loss", "Accuracy", "Margin", "Learning rate"]),
        ("ppo", ["Loss", "Reward", "Distance from the reference", "Length of answers", "Learning rate"]),
    ],
)
def test_each_stage_shows_its_own_curves(stage: str, charts: list[str], tmp_path: Path) -> None:
    data = {"batch_size": 4, "validation_rows": 4}
    schedule = {"name": "constant", "warmup_steps": 0}
    trainer = {"max_steps": 2, "val_every_n_steps": 1, "log_every_n_steps": 1}
    config = make_stage(stage, tmp_path, trainer=trainer, data=data, schedule=schedule)
    result = run_stage(config)
    text = (config.folder / "report.html").read_text()
    assert re.findall(r"<svg[^>]*>\n<title>(.*?)</title>", text)[: len(charts)] == charts
    assert f"started from</td><td>{config.init_from}" in text
    train, validation = result.facts.data
    assert train.digest != validation.digest and train.digest in text and validation.digest in text
    assert validation.amount == "4 rows" and train.where == ", ".join(config.data.paths)


def test_more_sections(trained: tuple[PretrainConfig, RunResult]) -> None:
    config, result = trained
    write_report(config, result, [("Against baselines", markdown_table(["x", "y"], [["7", "<i>|"]]) + "\n\n- a\n- b")])
    assert (
        "## Against baselines\n\n| x | y |\n| --- | --- |\n| 7 | <i>\\| |\n"
        in (config.folder / "report.md").read_text()
    )
    html = (config.folder / "report.html").read_text()
    assert "<h2>Against baselines</h2>" in html and "<td>7</td><td>&lt;i&gt;|</td>" in html
    assert "<ul><li>a</li><li>b</li></ul>" in html


def test_markdown_becomes_html() -> None:
    assert from_markdown("one\ntwo & three\n\n    code <b>\n      more") == (
        "<p>one<br>two &amp; three</p>\n<pre>\ncode &lt;b&gt;\n  more</pre>"
    )
    assert "<title>a &lt; b</title>" in page("a < b", [])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (61.4, "1 min 01 s"), (3_660, "1 h 01 min"), (200_000, "2 days 7 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_control_characters_are_shown_as_pictures() -> None:
    assert with_pictures("a\x00b\r\n\tc\x1b[2J\x7f\x9b") == "a\u2400b\u240d\n\tc\u241b[2J\u2421\ufffd"
    assert "\u2400" in pages.preformatted("\x00<b>") and "&lt;b&gt;" in pages.preformatted("\x00<b>")
