"""Reading options from YAML and the command line; nothing else in the package knows jsonargparse."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, get_loader, set_dumper, set_loader, set_parsing_settings

from lit_llm.cli.mistakes import explain, require_utf8
from lit_llm.cli.short_help import ShortHelp
from lit_llm.config import (
    PRESETS,
    ModelConfig,
    PretrainConfig,
    RunConfig,
    UserError,
    check_finite,
    preset_fields,
    preset_training,
)
from lit_llm.config.notices import check_ranks, tell_once, with_pictures
from lit_llm.config.serialization import check_values
from lit_llm.config.without_effect import without_effect
from lit_llm.config.yaml_text import check_yaml, write_yaml

T = TypeVar("T")
_unchecked = get_loader("yaml")


def main(
    kind: type[T],
    run: Callable[[T], None],
    arguments: Sequence[str] | None = None,
    program: str | None = None,
    short_help: ShortHelp | None = None,
) -> None:
    """Read a configuration of `kind` from YAML and the command line and call `run` with it.

    Options of a run that others leave without effect are named on stderr.

    What a user can put right ends as one line on stderr and exit status 1 (2 for the command line itself, 75 for a
    run that was preempted); Ctrl-C ends with status 130. Anything else is a bug, and shows its traceback.

    Args:
        kind: a dataclass of `lit_llm.config`.
        run: does the work.
        arguments: the command line; None takes it from the process.
        program: what --help calls the program; None: the name of the script.
        short_help: what --help shows; None: all that --help-all shows.
    """
    try:
        check_ranks()
        config = parse(kind, arguments, program, short_help)
    except UserError as error:
        _fail(str(error), 2)
    for line in without_effect(config) if isinstance(config, RunConfig) else ():
        tell_once(f"note: {line}")
    try:
        run(config)
    except UserError as error:
        _fail(str(error), error.exit_status)
    except KeyboardInterrupt as stopped:
        _fail(str(stopped) or "interrupted", 130)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", 1)


def _fail(message: str, status: int) -> None:
    print("error: " + with_pictures(" ".join(message.split())), file=sys.stderr)
    raise SystemExit(status)


def parse(
    kind: type[T],
    arguments: Sequence[str] | None = None,
    program: str | None = None,
    short_help: ShortHelp | None = None,
) -> T:
    """Read a configuration of `kind` from a command line; if that asks for help, the process ends once it is shown.

    Later words win: defaults, then the model preset, then `--config` files, then single options. Arguments are those of
    `main`.

    Raises:
        UserError: an unknown key (with the nearest valid one), a wrong type, an impossible combination, or a
            configuration file that is missing or broken; or the words are not UTF-8.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    require_utf8(words)
    parser = _parser(kind, program)
    keys = option_keys(kind)
    try:
        # read once for the preset alone, so that --help and --print_config show what it sets
        name = parser.parse_args([word for word in words if not _only_shows(word)]).get("model.preset")
        if name is not None:
            parser.set_defaults(_preset_defaults(kind, name))
        if short_help is not None and not {"-h", "--help"}.isdisjoint(words):
            short_help.show(parser)
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
        raise UserError(explain(str(error), [*keys, *_item_keys(kind)], words)) from error


def _preset_defaults(kind: type[Any], name: str) -> dict[str, Any]:
    """What a model preset sets, by dotted option: the model, and in pretraining the optimizer that suits it."""
    groups = {"model": preset_fields(name), **(preset_training(name) if issubclass(kind, PretrainConfig) else {})}
    return {f"{group}.{field}": value for group, fields in groups.items() for field, value in fields.items()}


def _check_groups(kind: type[Any], values: Namespace, prefix: str = "") -> None:
    """Refuse a group that is none, and null where an option needs a value: the parser takes null for any option."""
    hints = get_type_hints(kind)
    for name in (field.name for field in dataclasses.fields(kind)):
        value, options = values[name], _alternatives(hints[name])
        if dataclasses.is_dataclass(hints[name]) and not isinstance(value, Namespace):
            raise UserError(f"{prefix}{name} is {value}; it must be a group of options")
        if value is None:
            check_values(kind, {name: value}, prefix)
        for option in options:
            inside = get_args(option)[-1] if get_origin(option) in (list, dict) else option
            if dataclasses.is_dataclass(inside):
                for place, each in _groups(value):
                    _check_groups(inside, each, f"{prefix}{name}{place}.")  # type: ignore[arg-type]


def _groups(value: Any) -> list[tuple[str, Namespace]]:
    """The groups that an option's value is or has, each with how its place in it is written."""
    if isinstance(value, Namespace):
        return [("", value)]
    if isinstance(value, list):
        entries = [(f"[{number}]", each) for number, each in enumerate(value)]
    else:
        entries = [(f".{key}", each) for key, each in value.items()] if isinstance(value, dict) else []
    return [(place, each) for place, each in entries if isinstance(each, Namespace)]


def _parser(kind: type[Any], program: str | None) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    set_loader("yaml", _load, (yaml.YAMLError,))
    set_dumper("yaml", write_yaml)
    description = (kind.__doc__ or "").strip().partition("\n")[0]
    # an abbreviation would be taken for whatever option happens to begin like it
    parser = ArgumentParser(prog=program, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--help-all", action="help", help="Show every option and exit.")
    parser.add_argument("--config", action="config", help="YAML file of options; those on the command line win.")
    parser.add_class_arguments(kind, fail_untyped=True)
    parser.groups[kind.__name__].title = "In general"  # or it would be the description once more
    if any(field.type in (ModelConfig, "ModelConfig") for field in dataclasses.fields(kind)):
        help_text = "Start from a known architecture, in pretraining with the optimizer and schedule that suit it; "
        help_text += f"other options override it: {', '.join(PRESETS)}."
        parser.groups["model"].add_argument("--model.preset", type=str, default=None, help=help_text)
    return parser


def _load(text: str) -> Any:
    """Read what a file or an option says, and check it as `check_yaml` does."""
    values = _unchecked(text)
    if isinstance(values, dict | list):
        check_yaml(text)
    return values


def _only_shows(word: str) -> bool:
    return word in ("-h", "--help", "--help-all") or word.startswith("--print_config")


def option_keys(kind: type[Any], prefix: str = "") -> list[str]:
    """Return the dotted names of every option of a dataclass and of the dataclasses inside it."""
    keys = ["config"] if not prefix else []
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name = prefix + field.name
        keys.append(name)
        for option in _alternatives(hints[field.name]):
            if dataclasses.is_dataclass(option):
                keys += option_keys(option, name + ".")  # type: ignore[arg-type]
            if option is ModelConfig:
                keys.append(name + ".preset")
    return keys


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _item_keys(kind: type[Any], prefix: str = "") -> list[str]:
    """Return the dotted names of what the entries of a dataclass's lists and mappings have, as sources.path."""
    keys = []
    for name, hint in get_type_hints(kind).items():
        for option in _alternatives(hint):
            if dataclasses.is_dataclass(option):
                keys += _item_keys(option, f"{prefix}{name}.")  # type: ignore[arg-type]
            elif get_origin(option) in (list, dict) and dataclasses.is_dataclass(get_args(option)[-1]):
                keys += option_keys(get_args(option)[-1], f"{prefix}{name}.")
    return keys
