"""The one place that knows jsonargparse."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from lit_llm.config import (
    PRESETS,
    ModelConfig,
    PretrainConfig,
    UserError,
    check_finite,
    preset_fields,
    preset_training,
)

T = TypeVar("T")


def main(
    kind: type[T], run: Callable[[T], None], arguments: Sequence[str] | None = None, program: str | None = None
) -> None:
    """Read a configuration of `kind` from YAML and the command line and call `run` with it.

    What a user can put right ends as one line on stderr and exit status 1 (2 for the command line itself, 75 for a
    run that was preempted); Ctrl-C ends with status 130. Anything else is a bug, and shows its traceback.

    Args:
        kind: a dataclass of `lit_llm.config`.
        run: does the work.
        arguments: the command line; None takes it from the process.
        program: what --help calls the program; None: the name of the script.
    """
    try:
        config = parse(kind, arguments, program)
    except UserError as error:
        _fail(str(error), 2)
    try:
        run(config)
    except UserError as error:
        _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", 1)


def _fail(message: str, status: int) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    raise SystemExit(status)


def parse(kind: type[T], arguments: Sequence[str] | None = None, program: str | None = None) -> T:
    """A configuration of `kind` from a command line.

    Later words win: defaults, then the model preset, then `--config` files, then single options.

    Raises:
        UserError: an unknown key (with the nearest valid one), a wrong type, an impossible combination, or a
            configuration file that is missing or broken.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser(kind, program)
    keys = option_keys(kind)
    try:
        # read once for the preset alone, so that --help and --print_config show what it sets
        name = parser.parse_args([word for word in words if not _only_shows(word)]).get("model.preset")
        if name is not None:
            parser.set_defaults(_preset_defaults(kind, name))
        values = parser.parse_args(words)
        values.pop("model.preset", None)
        values.pop("config", None)
        _check_groups(kind, values)
        config = kind(**vars(parser.instantiate(values)))
        check_finite(config)
        return config
    except UserError:
        raise
    except (argparse.ArgumentError, ValueError, TypeError) as error:
        raise UserError(_explain(str(error), keys, words)) from error


def _preset_defaults(kind: type[Any], name: str) -> dict[str, Any]:
    """What a model preset sets, by dotted option: the model, and in pretraining the optimizer that suits it."""
    groups = {"model": preset_fields(name), **(preset_training(name) if issubclass(kind, PretrainConfig) else {})}
    return {f"{group}.{field}": value for group, fields in groups.items() for field, value in fields.items()}


def _check_groups(kind: type[Any], values: Namespace, prefix: str = "") -> None:
    for name, inside in get_type_hints(kind).items():
        if dataclasses.is_dataclass(inside):
            if not isinstance(values[name], Namespace):
                raise UserError(f"{prefix}{name} is {values[name]}; it must be a group of options")
            _check_groups(inside, values[name], f"{prefix}{name}.")  # type: ignore[arg-type]


def _parser(kind: type[Any], program: str | None) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    description = (kind.__doc__ or "").strip().partition("\n")[0]
    # an abbreviation would be taken for whatever option happens to begin like it
    parser = ArgumentParser(prog=program, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of options; those on the command line win.")
    parser.add_class_arguments(kind, fail_untyped=True)
    if any(field.type in (ModelConfig, "ModelConfig") for field in dataclasses.fields(kind)):
        help_text = "Start from a known architecture, in pretraining with the optimizer and schedule that suit it; "
        help_text += f"other options override it: {', '.join(PRESETS)}."
        parser.add_argument("--model.preset", type=str, default=None, help=help_text)
    return parser


def _only_shows(word: str) -> bool:
    return word in ("-h", "--help") or word.startswith("--print_config")


def option_keys(kind: type[Any], prefix: str = "") -> list[str]:
    """Every option of a dataclass and of those inside it, dotted."""
    keys = ["config"] if not prefix else []
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        keys.append(name)
        hint = hints[field.name]
        options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        for option in options:
            if dataclasses.is_dataclass(option):
                keys += option_keys(option, name + ".")  # type: ignore[arg-type]
            if option is ModelConfig:
                keys.append(name + ".preset")
    return keys


def _explain(message: str, keys: list[str], words: list[str]) -> str:
    """One line from a parser's complaint, with the nearest valid key where one was mistyped."""
    line = " ".join(message.split())
    unknown = re.search(r"[Uu]nrecognized arguments: --([\w.\-]+)", line)
    if unknown:
        return _unknown_key(unknown.group(1), keys)
    grouped = re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", line)
    if grouped:
        return _unknown_key(f"{grouped.group(1)}.{grouped.group(2)}", keys)
    inside = re.search(r"Parser key \"([\w.]+)\": .*Option '([\w.]+)' is not accepted", line)
    if inside:
        return _unknown_key(f"{inside.group(1)}.{inside.group(2)}", keys)
    nested = re.search(r"(?:Key|Option|option) ['\"]([\w.]+)['\"] (?:is not|does not)", line)
    if nested:
        return _unknown_key(nested.group(1), keys)
    if "Parser key" in line:
        return _wrong_value(line)
    about_file = re.search(r"(?:Unexpected config: ?|Problems parsing config: )(.*)", line)
    if about_file:
        files = [after for word, after in itertools.pairwise(words) if word == "--config"]
        files += [word.partition("=")[2] for word in words if word.startswith("--config=")]
        found = about_file.group(1) or "it is empty"
        return f"{', '.join(files)}: not a YAML file of options ({found})"
    return line


def _wrong_value(line: str) -> str:
    """What an option's value is and must be; `line` names the option, and those inside it, as Parser key."""
    key = ".".join(re.findall(r"Parser key \"([\w.]+)\":", line))
    given = re.search(r"Got value: (.*?)(?= - Expected| Given value type|$)", line)
    wanted = re.findall(r"Expected an? (.*?)(?=\. Got| - | Given|$)", line)
    if given is not None:
        wanted = wanted[:1]
    else:
        given = re.search(r"Given value: (.*)", line)
        wanted = ["group of options"] * ("valid subclass" in line) + wanted
    if given is None or not wanted:
        return f"{key}: {line.partition(': ')[2]}"
    return f"{key} is {given.group(1)}; it must be {' or '.join(map(_type_in_words, wanted))}"


def _type_in_words(name: str) -> str:
    choices = re.search(r"Literal\[(.*)\]", name)
    if choices:
        return choices.group(1).replace("'", "").replace(", ", " or ")
    name = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", name)
    return {
        "NoneType": "null",
        "str": "text",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
    }.get(name, "a " + name)


def _unknown_key(key: str, keys: list[str]) -> str:
    if key.rpartition(".")[2] == "hf_split":
        return f"there is no option {key}; write the split into the path, as hf:NAME::SPLIT or hf:NAME:CONFIG:SPLIT"
    near = difflib.get_close_matches(key, keys, n=1, cutoff=0.0)
    same_name = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    return f"there is no option {key}; the nearest is {(same_name or near)[0]}"
