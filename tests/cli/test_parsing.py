"""The command line: what is read, what is shown, and how it says what is wrong."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from conftest import ROOT, MakeRun

import lit_llm.config
from lit_llm.cli import main, parse
from lit_llm.cli.commands import COMMANDS, run_command
from lit_llm.cli.mistakes import NAMES_ELSEWHERE, NOTES
from lit_llm.cli.parsing import option_keys
from lit_llm.config import (
    EvaluateConfig,
    OptimizerConfig,
    PrepareConfig,
    PretrainConfig,
    SFTConfig,
    UserError,
    preset,
    preset_run,
    to_plain,
)
from lit_llm.config.notices import tell_once
from lit_llm.config.recipe import RecipeConfig
from lit_llm.config.without_effect import without_effect
from lit_llm.stages.pretrain import pretrain

SCRIPTS = {name: command.config for name, command in COMMANDS.items()}


def failure(capsys: pytest.CaptureFixture[str], *arguments: str, kind: type = PretrainConfig) -> tuple[int, str]:
    """Exit status and stderr of a script that must not come to its work."""
    with pytest.raises(SystemExit) as stopped:
        main(kind, lambda config: pytest.fail("it ran"), arguments)
    printed = capsys.readouterr()
    assert printed.out == ""
    return int(stopped.value.code), printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.num_layrs", "3"], "no option model.num_layrs; the nearest is model.num_layers"),
        # argparse would take the beginning of a name for the name
        (["--model.num_layer", "3"], "no option model.num_layer; the nearest is model.num_layers"),
        (["--learning_rate", "1"], "no option learning_rate; the nearest is optimizer.learning_rate"),
        (["--model.rope_scaling.fctor", "2"], "model.rope_scaling.fctor; the nearest is model.rope_scaling.factor"),
        (["--model.preset", "gtp2"], "no model preset 'gtp2'; try gpt2"),
        (["--model.num_layers", "three"], "model.num_layers is three; it must be a whole number"),
        (["--samples.sampling.top_k", "x"], "samples.sampling.top_k is x; it must be a whole number or null"),
        (["--trainer.precision", "16"], "it must be 32-true or bf16-mixed or bf16-true or auto"),
        (["--trainer.compile", "maybe"], "trainer.compile is maybe; it must be true or false or auto"),
        (["--model.rope_scaling.factor", "x"], "model.rope_scaling.factor is x; it must be a number"),
        (["--data.micro_batch_size", "3"], "data.batch_size 8 does not divide by data.micro_batch_size 3"),
        (["--schedule.warmup_steps", "2000"], "schedule.warmup_steps 2000 is more than trainer.max_steps 1000"),
        (["--data.sequence_length", "2048"], "is more than model.max_position_embeddings 1024"),
        (["--ckpt_path", "last", "--overwrite", "true"], "give one of the two"),
        (["--model.num_heads", "7"], "hidden_size 768 does not divide by model.num_heads 7"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--trainer.max_steps"], "--trainer.max_steps: expected one argument"),
        (["--optimizer.lr", "1"], "no option optimizer.lr; here it is optimizer.learning_rate"),
        (["--max_iters=5"], "no option max_iters; here it is trainer.max_steps"),
        (["--training.epochs", "5"], "no option training.epochs; here it is trainer.max_steps"),
        (["--block-size", "5"], "no option block-size; here it is data.sequence_length"),
        (["--model.n_embd", "5"], "no option model.n_embd; here it is model.hidden_size"),
        (["--bf16"], "no option bf16; here it is trainer.precision (bf16-mixed, or "),
        (["--per_device_train_batch_size", "2"], "here it is data.micro_batch_size"),
        (["--gradient_accumulation_steps", "2"], "here it is data.micro_batch_size (rows that a device reads at once;"),
        (["--batch_size", "2"], "no option batch_size; the nearest is data.batch_size"),
        (["--output_dir", "x"], "no option output_dir; here it is output_root"),
        (["--model_name_or_path", "x"], "no option model_name_or_path; here it is init_from"),
        (["--data.paths", "a.txt"], "data.paths is a.txt; it must be a list, as '[a.txt]'"),
        (["--data.paths=a.txt"], "data.paths is a.txt; it must be a list, as '[a.txt]'"),
        (["--data.paths", "a b", "it's", "--seed", "3"], "must be a list, as '[a b, \"it's\"]'"),
        (["--data.weights", "0.5"], "data.weights is 0.5; it must be a list or null, as '[0.5]'"),
        (["--samples.prompts", "Once upon, a: time"], """it must be a list, as '["Once upon, a: time"]'"""),
        (["--data.paths", "[a.txt"], "data.paths is [a.txt; it must be a list\n"),
        (["recipe.yaml"], "recipe.yaml stands alone; a file of options is read by --config recipe.yaml"),
        (["--trainer", "x"], "trainer is x; it must be a group of options, or a YAML file of one\n"),
        (["--run_name.first", "a"], "no option run_name.first; the nearest is run_name"),
        (["--data.paths", "[a\udcff]"], "[a\\xff] is not UTF-8, and options are read as UTF-8; rename the file"),
        (["--output_root", "caf\udce9"], "caf\\xe9 is not UTF-8, and options are read as UTF-8"),
        (["--trainer", "{max_steps: 1, max_steps: 2}"], "(line 1: max_steps stands there a second time, after line"),
        (["--samples.prompts", "[1:30, b]"], "it must be a list (line 1: numbers with colons count in sixties"),
        (["--output_root", "~nobody-here/runs"], "~nobody-here/runs: there is no such user, whose home folder that"),
        (["--seed", str(2**70)], "seed is 1180591620717411303424; it must be from -2^63 to 2^63 - 1"),
        (["max_iters=5"], "max_iters=5 stands alone; options are written as --NAME VALUE"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = failure(capsys, *arguments)
    assert status == 2
    assert text.startswith("error: ") and text.count("\n") == 1
    assert message in text


@pytest.mark.parametrize("entry", ["texts/", "5", "null"])
def test_a_source_that_is_no_group_of_options_is_answered_with_one(
    entry: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = failure(capsys, "--sources", f"[{entry}]", kind=RecipeConfig)
    assert status == 2 and text.count("\n") == 1
    shown = "None" if entry == "null" else entry
    assert (
        text == f"error: sources has {shown}; each of its entries must be a group of options, as '[{{path: texts/}}]'\n"
    )


def test_null_inside_the_entries_of_a_list_is_answered_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    message = "error: sources[1].path is None; it must be text\n"
    assert failure(capsys, "--sources", "[{path: a}, {path: null}]", kind=RecipeConfig) == (2, message)
    corpora = "{a: {path: x}, b: {path: y, max_epochs: null, weight: null}}"
    assert parse(PretrainConfig, ["--data.mix.corpora", corpora]).data.mix.corpora["b"].weight is None


@pytest.mark.parametrize(("kind", "key"), [(PrepareConfig, "corpus.hf_split"), (EvaluateConfig, "hf_split")])
def test_an_option_for_the_split_of_a_hub_data_set_is_answered_with_its_place_in_the_path(
    kind: type, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failure(capsys, f"--{key}", "test", kind=kind) == (
        2,
        f"error: there is no option {key}; write the split into the path, as hf:NAME::SPLIT or hf:NAME:CONFIG:SPLIT\n",
    )


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("sft", ["--num_train_epochs", "3"], "no option num_train_epochs; here it is epochs"),
        ("sft", ["--lora_r", "8"], "no option lora_r; here it is lora.rank"),
        ("dpo", ["--ref_model", "x"], "no option ref_model; here it is reference_model"),
        ("ppo", ["--num_generations", "8"], "no option num_generations; here it is group_size"),
        ("generate", ["--max_tokens", "8"], "no option max_tokens; here it is sampling.max_new_tokens"),
        ("generate", ["--bf16", "true"], "no option bf16; here it is dtype (bf16-mixed, or bfloat16 where"),
        ("evaluate", ["--dataset", "x"], "no option dataset; here it is texts"),
        ("prepare_data", ["--output_dir", "x"], "no option output_dir; here it is output"),
        ("generate", ["--prompts", "yes", "a # b"], """as '["yes", "a # b"]'"""),
        ("export", ["--model", "x"], "no option model; here it is checkpoint"),
        (
            "sft",
            ["--model", "x"],
            "or a YAML file of one; a model to start from is init_from, a known architecture model.preset",
        ),
        ("inspect_data", ["--data.paths", "x"], "no option data.paths; the nearest is data"),
        ("clean_data", ["--sources", "[{paht: x}]"], "no option sources.paht; the nearest is sources.path"),
        ("pretrain", ["--data.mix.corpora", "{a: {weigt: 3}}"], "weigt; the nearest is data.mix.corpora.weight"),
        ("clean_data", ["--sources", "a b"], "sources is a b; it must be a list, as '[{path: a b}]'"),
        ("generate", ["--sampling.stop_token_ids", "5"], "it must be a list, as '[5]'"),
    ],
)
def test_names_and_lists_of_every_command(
    command: str, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = failure(capsys, *words, kind=SCRIPTS[command])
    assert status == 2 and text.count("\n") == 1
    assert message in text


@pytest.mark.parametrize("name", ["\U0001f60a", "caf\xe9", "a\x85\u2028b", "3e-4", "'\"#: "])
def test_words_without_an_option_are_read_as_they_are(name: str) -> None:
    compare, find_rate = COMMANDS["compare"], COMMANDS["find_rate"]
    assert parse(compare.config, compare.as_options([name, "runs/b"])).runs == [name, "runs/b"]
    assert parse(find_rate.config, find_rate.as_options(["--", "--run_name", name])).options == ["--run_name", name]
    with pytest.raises(UserError, match=r'caf\\xe9", "b"] is not UTF-8'):
        parse(compare.config, compare.as_options(["caf\udce9", "b"]))


def test_what_others_call_it_leads_to_options_that_there_are() -> None:
    every = {key for kind in SCRIPTS.values() for key in option_keys(kind)}
    for name, ours in NAMES_ELSEWHERE.items():
        assert set(ours.split()) <= every, name
    assert NOTES.keys() <= NAMES_ELSEWHERE.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("modle: {num_layers: 2}\n", "no option modle.num_layers; the nearest is model.num_layers"),
        ("sed: 3\n", "no option sed; the nearest is seed"),
        ("model: {num_layrs: 2}\n", "no option model.num_layrs; the nearest is model.num_layers"),
        ("samples: {sampling: {topk: 2}}\n", "samples.sampling.topk; the nearest is samples.sampling.top_k"),
        ("model: {rope_scaling: {fctor: 2}}\n", "model.rope_scaling.fctor; the nearest is model.rope_scaling.factor"),
        ("model: {preset: gtp2}\n", "no model preset 'gtp2'"),
        ("model: {hidden_size: 1.5}\n", "model.hidden_size is 1.5; it must be a whole number"),
        ("trainer: {max_steps: 0}\n", "trainer.max_steps is 0; it must be at least 1"),
        ("data: {paths: one}\n", "data.paths is one; it must be a list, as '[one]'"),
        ("model: [1, 2]\n", "model is [1, 2]; it must be a group of options"),
        ("samples: {sampling: 3}\n", "samples.sampling is 3; it must be a group of options"),
        ("model: {rope_scaling: 3}\n", "model.rope_scaling is 3; it must be a group of options or null"),
        ("trainer: {max_steps: [1,\n", "recipe.yaml: not a YAML file of options"),
        ("", "recipe.yaml: not a YAML file of options (it is empty)"),
        ("42\n", "recipe.yaml: not a YAML file of options (42)"),
        ("trainer: {max_steps: 7}\nseed: 1\ntrainer: {max_time: 3}\n", "(line 3: trainer stands there a second time, "),
        ("model:\n  num_layers: 2\n  num_layers: 3\n", "line 3: num_layers stands there a second time, after line 2; "),
        (
            "trainer: {spike_action: off}\n",
            "off or log or skip (YAML takes off for false: put it in quotes)",
        ),
        ("trainer: {max_steps: null}\n", "error: trainer.max_steps is None; it must be a whole number\n"),
        ("trainer:\n  devices:\n", "error: trainer.devices is None; it must be a whole number or auto\n"),
        ("trainer: {loggers: null}\n", "error: trainer.loggers is None; it must be a list\n"),
        ("trainer:\n  precision:\n", "error: trainer.precision is None; it must be 32-true or bf16-mixed or bf16-true"),
        ("samples:\n  prompts:\n", "error: samples.prompts is None; it must be a list of texts\n"),
        ("z_loss: null\n", "error: z_loss is None; it must be a finite number\n"),
        ("trainer: {max_time: 30:00}\n", "(line 1: numbers with colons count in sixties, 1:30 as 90; put a time in "),
    ],
)
def test_a_wrong_file_is_one_line_and_status_2(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    status, text = failure(capsys, "--config", str(recipe))
    assert status == 2
    assert text.startswith("error: ") and text.count("\n") == 1
    assert message in text


def test_later_words_win(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {num_layers: 7, num_heads: 8}\ntrainer: {max_steps: 500}\n")
    # default 12, preset gpt2-medium 24, file 7, command line 3; whichever way round they are given
    arguments = ["--model.num_layers", "3", "--config", str(recipe), "--model.preset", "gpt2-medium"]
    assert parse(PretrainConfig, []).model.num_layers == 12
    assert parse(PretrainConfig, arguments[4:]).model.num_layers == 24
    assert parse(PretrainConfig, arguments[2:]).model.num_layers == 7
    config = parse(PretrainConfig, [*arguments[2:], *arguments[:2]])
    assert (config.model.num_layers, config.model.num_heads, config.model.hidden_size) == (3, 8, 1024)
    assert config.trainer.max_steps == 500


@pytest.mark.parametrize("name", ["pretrain", "sft", "quickstart", "quickstart_chat"])
def test_the_home_folder_is_meant_where_no_shell_has_said_so(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_root: ~/runs\nrun_name: a\n")
    init_from = ["--init_from", "model"] if name == "sft" else []
    assert parse(SCRIPTS[name], ["--config", str(recipe), *init_from]).folder == tmp_path / "runs" / "a"


def test_a_preset_inside_a_file(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {preset: llama3.2-1b, num_layers: 2}\n")
    assert parse(PretrainConfig, ["--config", str(recipe)]).model == preset("llama3.2-1b", num_layers=2)


def test_a_preset_brings_its_optimizer_unless_it_is_given(tmp_path: Path) -> None:
    brought = parse(PretrainConfig, ["--model.preset", "modern-1m"])
    assert (brought.optimizer.name, brought.optimizer.weight_decay) == ("muon", 0.0)
    assert (brought.schedule.name, brought.schedule.min_ratio) == ("wsd", 0.0)
    # the same from Python
    assert preset_run("modern-1m") == brought
    options = {"model": {"num_layers": 2}, "optimizer": {"weight_decay": 0.1}, "seed": 3}
    words = ["--model.num_layers", "2", "--optimizer.weight_decay", "0.1", "--seed", "3"]
    assert preset_run("modern-1m", **options) == parse(PretrainConfig, ["--model.preset", "modern-1m", *words])
    own = OptimizerConfig(learning_rate=1.0)
    assert preset_run("modern-1m", optimizer=own).optimizer == own
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {preset: modern-1m}\noptimizer: {name: adamw}\n")
    given = parse(PretrainConfig, ["--config", str(recipe), "--schedule.name", "cosine"])
    assert (given.optimizer.name, given.schedule.name, given.schedule.decay_fraction) == ("adamw", "cosine", 0.9)
    # a llama is pretrained as the defaults have it; and another stage has no model to choose
    assert parse(PretrainConfig, ["--model.preset", "llama-10m"]).optimizer == OptimizerConfig()
    assert parse(SFTConfig, ["--model.preset", "modern-1m"]).optimizer == SFTConfig().optimizer


def test_print_config_parses_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model.preset", "llama3.2-1b", "--trainer.max_steps", "3000", "--data.paths", "[a, '1e5']"]
    arguments += ["--run_name", "3e-4"]
    with pytest.raises(SystemExit) as stopped:
        parse(PretrainConfig, [*arguments, "--print_config"])
    assert stopped.value.code in (0, None)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(capsys.readouterr().out)
    assert parse(PretrainConfig, ["--config", str(recipe)]) == parse(PretrainConfig, arguments)


@pytest.mark.parametrize("architecture", ["modern-1m", "llama3.2-1b"])
def test_the_config_of_a_run_repeats_it(architecture: str, make_run: MakeRun) -> None:
    """A run's config.yaml, given back as --config, is the run: what it resolved (the vocabulary) included."""
    run = make_run("1e5", architecture, model={"vocab_size": None}, trainer={"max_steps": 2})
    pretrain(run)
    again = parse(PretrainConfig, ["--config", str(run.folder / "config.yaml")])
    assert again == run and again.model.vocab_size == 400


def test_every_kind_of_configuration_survives_yaml(tmp_path: Path) -> None:
    for kind in SCRIPTS.values():
        recipe = tmp_path / f"{kind.__name__}.yaml"
        recipe.write_text(yaml.safe_dump(to_plain(kind())))
        assert parse(kind, ["--config", str(recipe)]) == kind()


def groups(kind: Any, prefix: str = "") -> list[tuple[Any, str]]:
    """A dataclass and those inside it, with what goes before their options."""
    found = [(kind, prefix)]
    for name, hint in get_type_hints(kind).items():
        for option in get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,):
            if dataclasses.is_dataclass(option):
                found += groups(option, f"{prefix}{name}.")
    return found


def field_docstrings(kind: Any) -> dict[str, str]:
    """The string after each field of a class and its bases."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(inspect.getsource(base)).body[0].body  # type: ignore[attr-defined]
        for statement, after in itertools.pairwise(body):
            if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
                texts[statement.target.id] = ast.literal_eval(after.value)  # type: ignore[union-attr]
    return texts


def help_of(kind: type, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        parse(kind, [option])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("kind", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_help_says_what_every_option_is(
    kind: type, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    shown = help_of(kind, "--help-all", capsys)
    for group, prefix in groups(kind):
        optional = prefix == "model.rope_scaling."  # may be null, so its options have a help of their own
        text = help_of(kind, "--model.rope_scaling.help", capsys) if optional else shown
        documented = field_docstrings(group)
        for field in dataclasses.fields(group):
            sentence = " ".join(documented[field.name].rstrip(".").split())  # a heading has no full stop
            assert len(sentence) > 5 and sentence in text, f"{prefix}{field.name}"
            if not dataclasses.is_dataclass(get_type_hints(group)[field.name]):
                assert f"--{prefix}{field.name} " in text


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_what_people_change_and_an_example(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = COMMANDS[name]
    keys = option_keys(command.config)
    assert set(command.everyday) <= set(keys)
    with pytest.raises(SystemExit) as stopped:
        run_command(name, ["--help"], f"lit-llm {name}")
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split()[0] for line in lines if line.startswith("  -")]
    wanted = {f"--{key}" for key in command.everyday or keys}
    assert {"-h,", "--help-all", "--config"} <= set(shown) and wanted <= set(shown)
    assert set(shown) <= wanted | {"-h,", "--help-all", "--config"}
    assert len(lines) < 80 and max(map(len, lines)) <= 120
    # the example is a command line that is read
    place = lines.index("example:")
    words = shlex.split("\n".join(lines[place + 1 :]).replace("\\\n", " "))
    assert words[:2] == ["lit-llm", name] and len(words) > 2
    parse(command.config, command.as_options(words[2:]))


def test_help_of_ppo_says_how_a_reward_function_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("ppo", ["--help"], "ppo.py")
    shown = " ".join(capsys.readouterr().out.split())
    call = "function(prompts=[TEXT, ...], completions=[TEXT, ...], FIELD=[VALUE, ...], ...) and return [NUMBER, ...]"
    assert call in shown and 'rows such as {"prompt": "What is 2 + 3?", "answer": "5"}, whose fields' in shown


def test_help_shows_what_a_preset_sets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("pretrain", ["--model.preset", "gpt2-medium", "-h"], "pretrain.py")
    shown = " ".join(capsys.readouterr().out.split())
    assert "--model.num_layers NUM_LAYERS Blocks. (default: 24)" in shown
    assert "python experiments/pretrain.py --data.paths" in shown


def test_every_dataclass_is_an_option_of_some_script() -> None:
    """So the test above reads all of them; some are only what stages have in common, or stand in lists."""
    config = lit_llm.config
    common = {config.RunConfig, config.BatchConfig, config.LoadConfig, config.PostTrainingConfig, config.RowsConfig}
    reached = {group for kind in SCRIPTS.values() for group, _ in groups(kind)} | common | {config.SourceConfig}
    exported = (getattr(lit_llm.config, name) for name in lit_llm.config.__all__)
    assert {kind for kind in exported if dataclasses.is_dataclass(kind)} == reached


def test_an_expected_error_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: PretrainConfig) -> None:
        raise UserError("the disk\n  is \x1b[2Jfull")

    with pytest.raises(SystemExit) as stopped:
        main(PretrainConfig, run, [])
    assert stopped.value.code == 1
    assert capsys.readouterr() == ("", "error: the disk is \u241b[2Jfull\n")


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_a_rank_that_is_no_number_is_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "")
    message = f"error: the environment has {name}=''; a launcher puts a whole number there: unset {name}\n"
    assert failure(capsys) == (2, message)


def test_an_operating_system_error_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(PretrainConfig, lambda config: print((tmp_path / "gone").read_text()), [])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'gone'}: No such file or directory\n"


IDLE = {
    "optimizer.muon_momentum 0.9 has no effect with optimizer.name adamw": "optimizer.name muon",
    "schedule.decay_fraction 0.5 has no effect with schedule.name constant": "schedule.name wsd",
    "schedule.min_ratio 0.2 has no effect with schedule.name constant": "schedule.name linear",
    "trainer.spike_sigmas 5.0 has no effect with trainer.spike_action off": "trainer.spike_action skip",
    "data.prefetch_factor 2 has no effect with data.num_workers 0": "data.num_workers 1",
}


@pytest.mark.parametrize("kind", [PretrainConfig, SFTConfig])
@pytest.mark.parametrize("line", IDLE)
def test_an_option_that_another_leaves_without_effect_is_named(
    line: str, kind: type, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_once.cache_clear()  # another test may have had it said
    idle, beside = (words.split() for words in line.split(" has no effect with "))
    idle, beside = [f"--{idle[0]}", idle[1]], [f"--{beside[0]}", beside[1]]
    name, value = IDLE[line].split()
    main(kind, lambda config: None, [*idle, *beside])
    assert capsys.readouterr() == ("", f"note: {line}\n")
    main(kind, lambda config: None, [*idle, *beside, f"--{name}", value])
    main(kind, lambda config: None, beside)
    assert capsys.readouterr() == ("", "")


def test_nothing_in_a_recipe_is_without_effect() -> None:
    recipes = [path for path in (ROOT / "experiments" / "configs").glob("*/*.yaml") if path.parent.name in SCRIPTS]
    assert len(recipes) > 10
    for path in recipes:
        assert without_effect(parse(SCRIPTS[path.parent.name], ["--config", str(path)])) == [], path
    assert all(without_effect(preset_run(name)) == [] for name in lit_llm.config.PRESETS)


def test_an_interrupt_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: PretrainConfig) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        main(PretrainConfig, run, [])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize("bug", [ZeroDivisionError("one"), ValueError("two"), OSError("no file name")])
def test_a_bug_is_not_swallowed(bug: Exception) -> None:
    def run(config: PretrainConfig) -> None:
        raise bug

    with pytest.raises(type(bug), match=str(bug)):
        main(PretrainConfig, run, [])


def test_the_scripts_here_are_all_the_scripts() -> None:
    assert {path.stem for path in (ROOT / "experiments").glob("*.py")} == set(SCRIPTS)


def test_stages_run_from_python_without_what_reads_options() -> None:
    """The usual image of a GPU machine has neither of them."""
    code = (
        "import sys\n"
        "sys.modules['jsonargparse'] = sys.modules['datasets'] = None\n"
        "from lit_llm.stages import tokenizer, prepare, pretrain, sft, reward, dpo, ppo, evaluate, export\n"
        "from lit_llm.cli import generate, plan\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_help_imports_neither_torch_nor_lightning() -> None:
    """In one process, one script after another: what one imports would be found after the next as well."""
    code = (
        "import runpy, sys\n"
        "for path in sys.argv[1:]:\n"
        "    sys.argv = [path, '--help']\n"
        "    try:\n"
        "        runpy.run_path(path, run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        assert end.code in (0, None), end.code\n"
        "    heavy = {'torch', 'lightning', 'transformers', 'datasets', 'tokenizers'} & set(sys.modules)\n"
        "    assert not heavy, (path, heavy)\n"
        "    print('SHOWN', path)\n"
    )
    paths = [str(ROOT / "experiments" / f"{name}.py") for name in SCRIPTS]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SHOWN") == len(SCRIPTS) and done.stdout.count("usage: ") == len(SCRIPTS)
    assert done.stderr == ""
