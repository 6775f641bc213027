"""The planner from the command line: its tables, and one line for what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, tiny_model

from lit_llm.cli import main
from lit_llm.cli.plan import plan
from lit_llm.config import PlanConfig
from lit_llm.interop import save_model_folder
from lit_llm.model import Decoder
from lit_llm.planning.machine import memory_gib
from lit_llm.tokenizer import Tokenizer

RECIPE = ROOT / "experiments" / "configs" / "pretrain" / "llama3_1b.yaml"
PRICES = str(ROOT / "experiments" / "configs" / "prices" / "aws_capacity_blocks.yaml")
TOY = """
    --model.preset llama-10m --model.hidden_size 64 --model.num_layers 2 --model.num_heads 4
    --model.intermediate_size 160 --model.vocab_size 512 --data.sequence_length 32 --data.batch_size 16
    --data.micro_batch_size 2 --schedule.warmup_steps 1 --trainer.max_steps 1000
"""
SMALL = f"{TOY} --gpu H100"


def planned(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(PlanConfig, plan, list(arguments))
    return capsys.readouterr().out


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines() if line.startswith("│")]


def test_a_recipe_for_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    gpus = ["--gpu", "H100", "--num_gpus", "8", "--price", "2.5", "--mfu", "0.4"]
    text = planned(capsys, "--config", str(RECIPE), *gpus, "--model.vocab_size", "32000")
    rows = rows_of(text)
    assert ["all", "1,038,682,112", ""] in rows
    memory = [row for row in rows if row[1] in ("none", "selective", "every_n", "full")]
    assert {row[0] for row in memory} == {"ddp", "fsdp", "deepspeed 1", "deepspeed 2", "deepspeed 3"}
    assert len(memory) == 5 * 4
    for row in memory:
        *parts, total = map(float, row[3:11])
        assert sum(parts) == pytest.approx(total, abs=0.05)
    assert re.search(r"cheapest that fits: ddp, checkpointing none, \d\d\.\d GiB of 72\.8 GiB", text)
    recipe = next(row for row in rows if row[0] == "as the recipe has it")
    # 20,000 steps of 256 x 4,096 tokens at 7.84e9 operations each, on eight GPUs of 989e12 at 40%
    assert recipe[1:3] == ["20,000", "20.97 B"]
    hours = 20_000 * 256 * 4096 * 7.842e9 / (8 * 989e12 * 0.4) / 3600
    assert recipe[4].endswith(" h") and float(recipe[4][:-2]) == pytest.approx(hours, abs=0.06)
    assert float(recipe[6]) == pytest.approx(hours * 8 * 2.5, rel=0.001)


def test_a_gpu_without_bfloat16(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*SMALL.split(), "--gpu", "T4", "--mfu", "0.4", "--trainer.precision"]
    text = planned(capsys, *words, "auto")
    assert "at the peak of a step, 32-true" in text and "Tesla T4 at 40% of 8,100 GFLOP/s" in text
    assert "bf16 peak" not in text
    with pytest.raises(SystemExit):
        planned(capsys, *words, "bf16-mixed")
    assert "Tesla T4 has no units for bfloat16" in capsys.readouterr().err


def test_the_largest_micro_batch_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = planned(capsys, *SMALL.split(), "--gpu_memory_gib", "0.005", "--headroom", "0", "--fit", "true")
    memory = [row for row in rows_of(text) if row[0] == "one device"]
    most = {row[1]: int(row[-1]) for row in memory}
    assert 1 <= most["none"] <= most["selective"] <= most["full"] <= 16
    assert most["none"] < most["full"]
    assert all((most[row[1]] >= 2) == (row[-3] == "yes") for row in memory)  # the recipe has two


@pytest.mark.parametrize("name", ["sweep[lr=3e-4]", "x[/y]", "a:smile:"])
def test_a_name_is_shown_as_it_is(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    picture = tmp_path / name / "if.svg"
    words = [*SMALL.split(), "--run_name", name]
    text = planned(capsys, *words, "--what_if", "[1]", "--output", str(picture))
    assert f"model of {name}\n" in re.sub(" +\n", "\n", text) and f"picture  {picture}\n" in text
    assert f"serving {name} on NVIDIA H100" in planned(capsys, *words, "--serve", "recipe")


def test_what_fits_only_sharded(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL.split(), "--num_gpus", "8", "--model.num_layers", "8", "--headroom", "0", "--gpu_memory_gib"]
    sharded = planned(capsys, *arguments, "0.006")
    assert re.search(r"that fits: fsdp, .*; ddp holds \d\.\d MiB even at checkpointing (every_n|full)", sharded)
    nothing = planned(capsys, *arguments, "0.0001")
    part = r"\d\.\d MiB are gathered weights and buckets: a larger trainer\.tensor_parallel_size \(1 here\)"
    assert re.search(rf"nothing fits in 0\.1 MiB.* needs least, \d\.\d MiB, of which {part}", nothing)


def test_tensor_parallelism_where_it_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    parallel = ["--trainer.strategy", "fsdp", "--trainer.tensor_parallel_size", "2", "--num_gpus", "4"]
    text = planned(capsys, *SMALL.split(), *parallel, "--gpu_memory_gib", "0.02")
    assert len([row for row in rows_of(text) if row[0] == "fsdp x tp 2"]) == 4


def test_a_toy_is_planned_for_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    text = planned(capsys, *TOY.split())
    (memory,) = [row for row in rows_of(text) if row[0] in ("one device", "ddp")]
    assert memory[1] == "none" and "checkpointing is left out, as a step needs less than 10% of the memory" in text
    assert sum(map(float, memory[3:10])) == pytest.approx(float(memory[10]), abs=0.05)
    if torch.cuda.is_available():
        assert f"planned for {torch.cuda.device_count()} x {torch.cuda.get_device_name()}, " in text
        return
    assert re.search(rf"^planned for this machine's CPU \(\d+ cores?\), {memory_gib():.1f} GiB of memory; --gpu", text)
    speed = re.search(r"at 40% of ([\d,]+) (G|T)FLOP/s, the speed of float32", " ".join(text.split()))
    recipe = next(row for row in rows_of(text) if row[0] == "as the recipe has it")
    assert speed is not None and recipe[1:3] == ["1,000", "512,000"] and len(recipe) == 5
    seconds = float(recipe[3]) / (0.4 * float(speed[1].replace(",", "")) * {"G": 1e9, "T": 1e12}[speed[2]])
    value, unit = recipe[4].split()
    assert float(value) * {"s": 1, "min": 60, "h": 3600}[unit] == pytest.approx(seconds, rel=0.02, abs=0.06)


def test_a_toy_is_planned_without_the_compiler_of_torch() -> None:
    """To import it takes longer than all else."""
    code = (
        "import sys\n"
        "from lit_llm.cli.commands import run_command\n"
        f"run_command('plan', {TOY.split()!r})\n"
        "heavy = {name for name in sys.modules if name.startswith(('torch._dynamo', 'torch.distributed.tensor'))}\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_vocabulary_and_shape_from_files(
    capsys: pytest.CaptureFixture[str], shards: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    small = [word if word != "512" else "null" for word in SMALL.split()]
    assert ["embedding", "25,600", "21.3%"] in rows_of(planned(capsys, *small, "--data.paths", f"[{shards}]"))
    config = PlanConfig().model
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 48}
    for name, value in sizes.items():
        setattr(config, name, value)
    save_model_folder(tmp_path / "model", config, Decoder(config).state_dict(), tokenizer)  # as a run keeps it
    text = planned(capsys, "--init_from", str(tmp_path), "--trainer.max_tokens", "40000")
    assert rows_of(text)[0][:2] == ["embedding", "9,600"]
    assert "in windows of 48 tokens" in text  # all that the model reads
    assert next(row for row in rows_of(text) if row[0] == "as the recipe has it")[1] == "104"  # of 8 x 48 tokens


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--config", str(RECIPE)], r"model.vocab_size is not set .*fineweb.*add --model.vocab_size"),
        ([*SMALL.split(), "--gpu", "H1000"], r"gpu 'H1000' is not in the table; it knows .*H100, .*T4"),
        ([*SMALL.split(), "--num_gpus", "0"], "num_gpus is 0"),
        pytest.param(
            *([*TOY.split(), "--num_gpus", "8"], "num_gpus is given, but this machine has no GPU; .*--gpu H100"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        ([*SMALL.split(), "--num_gpus", "16"], "data.batch_size 16 does not divide by data.micro_batch_size 2 x 16"),
        ([*SMALL.split(), "--mfu", "40"], "mfu is 40.* at most 1"),
        ([*SMALL.split(), "--headroom", "1"], "headroom is 1"),
        ([*SMALL.split(), "--price", "-1"], "price is -1"),
        ([*SMALL.split(), "--price", "1", "--prices", "x.yaml"], "price and prices are given"),
        ([*SMALL.split(), "--prices", "gone.yaml"], "prices: gone.yaml cannot be read"),
        (
            [*SMALL.split(), "--gpu", "4090", "--prices", PRICES],
            r"prices .*\.yaml has no NVIDIA GeForce RTX 4090, only",
        ),
        ([*SMALL.split(), "--pue", "0.9"], "pue is 0.9; it must be at least 1"),
        ([*SMALL.split(), "--utilisation", "80"], "utilisation is 80"),
        ([*SMALL.split(), "--what_if", "[0]"], r"what_if is \[0\]"),
        ([*SMALL.split(), "--what_if", "[3, 5]"], r"none of what_if \[3, 5\] can run the recipe: .* does not divide"),
        ([*SMALL.split(), "--output", "x.svg"], "output is x.svg; it must be a file .*, for the picture of what_if"),
        ([*SMALL.split(), "--what_if", "[2]", "--output", "x.png"], "output is x.png"),
        ([*SMALL.split(), "--scaling", "nowhere"], "there is no nowhere/scaling.json; lit-llm scaling"),
        pytest.param(
            *([*TOY.split(), "--what_if", "[2]"], "what_if compares numbers of GPUs, and here is none; .*--gpu H100"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
        pytest.param(
            *([*TOY.split(), "--kwh_price", "1"], r"the power of this machine's CPU .* is not known; give --watts"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
        ),
    ],
)
def test_one_line_for_what_is_wrong(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        planned(capsys, *arguments)
    error = capsys.readouterr().err
    assert re.search(complaint, error)
    assert error.count("\n") == 1


def test_energy_and_what_if(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("H100: 2.5\nT4: 0.4\nMI300X: 3\n")  # the last is not in the table of GPUs
    power = ["--utilisation", "0.5", "--pue", "1.5", "--kwh_price", "0.3", "--kg_co2_per_kwh", "0.4"]
    page = tmp_path / "out" / "what_if.html"
    numbers = ["--what_if", "[1, 2, 4, 3, 16]", "--output", str(page)]
    arguments = [*SMALL.split(), "--trainer.max_steps", "10000000000000", "--prices", str(prices), *power]
    rows = rows_of(planned(capsys, *arguments, *numbers))
    run = next(row for row in rows if row[0] == "as the recipe has it")
    gpu_hours = float(run[5].replace(",", ""))
    cost, kwh, energy, co2 = (float(cell.replace(",", "")) for cell in run[6:10])
    assert cost == pytest.approx(gpu_hours * 2.5, rel=0.01)
    assert kwh == pytest.approx(gpu_hours * 0.7 * 0.5 * 1.5, rel=0.01)  # 700 W at half load
    assert energy == pytest.approx(kwh * 0.3, abs=0.01) and co2 == pytest.approx(kwh * 0.4, abs=0.01)
    by_number = {row[0]: row for row in rows if row[0] in ("1", "2", "4", "3", "16")}
    assert by_number["1"][1].startswith("one device, checkpointing none") and by_number["2"][1].startswith("ddp")
    hours = {number: float(by_number[number][2].split()[0].replace(",", "")) for number in ("1", "2", "4")}
    assert hours["1"] == pytest.approx(2 * hours["2"], rel=0.05) and hours["1"] == pytest.approx(
        4 * hours["4"], rel=0.05
    )
    assert by_number["1"][4:] == run[6:]
    assert "does not divide" in by_number["3"][1] and by_number["3"][2:] == [""] * 6
    text = page.read_text()
    assert text.count("<svg") == 3 and "src=" not in text and "does not divide" in text
    svg = tmp_path / "what_if.svg"
    planned(capsys, *arguments, "--what_if", "[2]", "--output", str(svg))
    assert svg.read_text().startswith("<svg") and svg.read_text().count("<title>") == 6  # each picture and its curve


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_processes_of_a_cpu_share_one_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Its power does not depend on their number; other machines have memory and power of their own."""
    words = [*TOY.split(), "--trainer.max_steps", "10000000000000", "--watts", "100", "--kwh_price", "1"]
    for processes, machines in ((1, 1), (2, 1), (2, 2)):
        spread = ["--trainer.devices", str(processes), "--trainer.num_nodes", str(machines)]
        text = planned(capsys, *words, *spread)
        assert f", {memory_gib() / processes:.1f} GiB of memory" in text and "energy: 100 W at 80%" in text
        run = next(row for row in rows_of(text) if row[0] == "as the recipe has it")
        hours, kwh, price = (float(cell.split()[0].replace(",", "")) for cell in run[4:7])
        assert kwh == price == pytest.approx(hours * machines * 0.1 * 0.8 * 1.2, rel=1e-3)
    served = planned(capsys, *TOY.split(), "--serve", "recipe", *spread)
    assert f", {memory_gib():.1f} GiB of memory" in served


def test_prices_by_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gpu", "A100-SXM4-40GB", "--prices", PRICES, "--trainer.max_steps", "10000000000000"]
    text = planned(capsys, *TOY.split(), *arguments)
    run = next(row for row in rows_of(text) if row[0] == "as the recipe has it")
    gpu_hours, cost, kwh = (float(cell.replace(",", "")) for cell in run[5:8])
    assert cost == pytest.approx(gpu_hours * 1.844, rel=0.01)
    assert kwh == pytest.approx(gpu_hours * 0.4 * 0.8 * 1.2, rel=0.01)


def test_a_gpu_has_one_price(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("H100: 2.5\nNVIDIA H100: 2\n")
    with pytest.raises(SystemExit):
        planned(capsys, *SMALL.split(), "--prices", str(prices))
    message = f"prices: {prices} has NVIDIA H100 twice, the second time as NVIDIA H100; leave one of the two"
    assert message in capsys.readouterr().err


def test_serving(capsys: pytest.CaptureFixture[str], tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Weights by quantization, the cache by tokens and texts, and what fits; of a recipe's model and of a folder."""
    shape = "--model.preset llama3.2-1b --model.vocab_size 128256 --trainer.precision bf16-true"
    options = "--serve_lengths [1024,8192] --serve_texts [1,32] --gpu H100 --gpu_memory_gib 10 --headroom 0"
    text = planned(capsys, *shape.split(), "--serve", "recipe", *options.split())
    rows = {row[0]: row[1:] for row in rows_of(text)}
    # 16 layers of 8 heads of 64 numbers in 2 bytes, keys and values
    assert rows["1,024"] == ["32.00 MiB", "32.00 MiB", "1.00 GiB"]
    assert rows["8,192"] == ["0.25 GiB", "0.25 GiB", "8.00 GiB"]
    count = 1_235_814_400
    assert rows["bfloat16"][0] == f"{2 * count / 2**30:.2f} GiB"
    assert rows["bfloat16"][1:] == [f"{int((10 * 2**30 - 2 * count) // size)}" for size in (2**25, 2**28)]
    assert float(rows["--quantize int8"][0].split()[0]) < 0.75 * 2 * count / 2**30
    folder = tmp_path / "model"
    model = Decoder(tiny_model(vocab_size=tokenizer.vocab_size))
    save_model_folder(folder, model.config, model.state_dict(), tokenizer)
    text = planned(capsys, "--serve", str(folder), "--gpu", "T4")
    rows = {row[0]: row[1:] for row in rows_of(text)}
    assert f"serving {folder} on Tesla T4" in text and {"2", "8", "32", "float32", "--quantize int4"} <= rows.keys()
    with pytest.raises(SystemExit):
        planned(capsys, "--serve", str(folder), "--gpu", "T4", "--serve_lengths", "[64]")
    assert "serve_lengths has 64; the context of" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        planned(capsys, "--serve_texts", "[4]")
    assert "serve_texts is for serve; give serve, or leave serve_texts out" in capsys.readouterr().err
    for words, message in (
        (["--prices", PRICES], "prices is for the training of a recipe; serve says memory alone, so leave prices out"),
        (["--what_if", "[1]"], "what_if is for the training of a recipe"),
        (["--mfu", "0.1", "--gpu", "H100"], "mfu is for the training of a recipe"),
        (["--utilisation", "0.5"], "utilisation is for the training of a recipe"),
        (["--pue", "1.5"], "pue is for the training of a recipe"),
    ):
        with pytest.raises(SystemExit):
            planned(capsys, "--serve", "recipe", *words)
        assert message in capsys.readouterr().err
