"""Settings from three places: a dataclass's defaults, then a YAML file, then flags.

A settings class is a frozen dataclass; a field that is itself a dataclass is a section of the file, and
`--section.key value` on the command line. This module converts, merges and reports; it knows no particular
setting, and checks that concern several fields belong to the class's `__post_init__`.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from telechat.errors import ConfigError
from telechat.registry import nearest

T = TypeVar("T")

TRUE_WORDS = frozenset({"true", "yes", "on", "1"})
FALSE_WORDS = frozenset({"false", "no", "off", "0"})


class _Typed(str):
    """A value from the command line: text that still has to become the field's type."""


def load_config(
    cls: type[T], path: str | Path | None = None, overrides: Mapping[str, str] | None = None
) -> T:
    """Build the settings `cls` from its defaults, a YAML file and flags, in rising order of weight.

    Args:
        cls: a dataclass; sections are fields that are dataclasses.
        path: a YAML file with a mapping at its top, or None.
        overrides: "section.key" -> text as typed; dashes in keys are read as underscores.

    Raises:
        ConfigError: unreadable file, unknown or missing key, wrong type of value; names file and key.
    """
    raw: dict[str, Any] = read_yaml(path) if path is not None else {}
    source = str(path) if path is not None else "settings"
    known = list(dotted_keys(cls))
    for key, text in (overrides or {}).items():
        _set_dotted(raw, cls, key.replace("-", "_"), text, known)
    return from_mapping(cls, raw, source=source)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping; an empty file is an empty mapping."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"Cannot read the settings file {path}: {reason}.") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "malformed"
        raise ConfigError(f"{path}{where} is not valid YAML: {problem}.") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path} holds a {type(data).__name__} at its top level; expected a mapping of settings."
        )
    return data


def from_mapping(cls: type[T], raw: Mapping[str, Any], *, source: str = "settings", prefix: str = "") -> T:
    """Build the dataclass `cls` from a mapping, checking every key and type. `source` is named in errors."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key not in fields:
            _raise_unknown(f"{prefix}{key}", [f"{prefix}{name}" for name in fields], source)
        values[key] = _convert(hints[key], value, f"{prefix}{key}", source)
    missing = [
        f"{prefix}{field.name}" for field in fields.values() if field.name not in values and _required(field)
    ]
    if missing:
        raise ConfigError(
            f"{source} lacks {', '.join(missing)}.", hint="Add it to the file or give it as a flag."
        )
    return cls(**values)


def to_mapping(config: Any) -> dict[str, Any]:
    """The settings as plain YAML-able values, defaults included, in the order of the fields."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def to_yaml(config: Any) -> str:
    """The settings as YAML text that `load_config` reads back to an equal value."""
    import yaml

    return yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)


def dotted_keys(cls: Any, prefix: str = "") -> Iterator[str]:
    """Every key of a settings class, sections joined by dots: "data.max_length"."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        section = _section_of(hints[field.name])
        if section is None:
            yield f"{prefix}{field.name}"
        else:
            yield from dotted_keys(section, f"{prefix}{field.name}.")


def parse_bool(text: str) -> bool | None:
    """True/False and their usual spellings in any case; None for anything else."""
    word = text.strip().lower()
    if word in TRUE_WORDS:
        return True
    return False if word in FALSE_WORDS else None


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _section_of(hint: Any) -> Any | None:
    """The dataclass behind a field's type (also behind `X | None`), or None for a plain value."""
    options = _union_options(hint) or (hint,)
    return next((option for option in options if dataclasses.is_dataclass(option)), None)


def _union_options(hint: Any) -> tuple[Any, ...] | None:
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return None


def _set_dotted(raw: dict[str, Any], cls: Any, key: str, text: str, known: list[str]) -> None:
    """Write one flag into the raw mapping, refusing a path that no section leads to."""
    node, current = raw, cls
    parts = key.split(".")
    for depth, part in enumerate(parts[:-1]):
        hints = typing.get_type_hints(current) if dataclasses.is_dataclass(current) else {}
        if part not in hints:
            _raise_unknown(key, known, "command line")
        current = _section_of(hints[part])
        if current is None and typing.get_origin(hints[part]) is not dict:
            _raise_unknown(key, known, "command line")
        child = node.get(part)
        if not isinstance(child, dict):
            child = {}
            node[part] = child
        node = child
        if current is None and depth < len(parts) - 2:
            _raise_unknown(key, known, "command line")
    if dataclasses.is_dataclass(current) and parts[-1] not in {
        field.name for field in dataclasses.fields(current)
    }:
        _raise_unknown(key, known, "command line")
    node[parts[-1]] = _Typed(text)


def _raise_unknown(key: str, known: list[str], source: str) -> typing.NoReturn:
    leaf = key.rsplit(".", 1)[-1]
    same_leaf = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    guess = same_leaf[0] if same_leaf else nearest(key, known)
    if guess is None:
        by_leaf = {name.rsplit(".", 1)[-1]: name for name in known}
        close = nearest(leaf, list(by_leaf))
        guess = by_leaf[close] if close else None
    hint = f"Did you mean {guess}?" if guess else f"Known keys: {', '.join(sorted(known))}."
    raise ConfigError(f"Unknown key {key} ({source}).", hint=hint)


def _convert(hint: Any, value: Any, key: str, source: str) -> Any:
    """`value` as the type `hint` asks for, or a ConfigError naming key, value and expectation."""
    try:
        return _as_type(hint, value, key, source)
    except _Mismatch:
        shown = str(value) if isinstance(value, _Typed) else value
        raise ConfigError(f"{key} is {shown!r} ({source}); expected {describe(hint)}.") from None


class _Mismatch(Exception):
    """Internal: this value does not fit this type."""


def _as_type(hint: Any, value: Any, key: str, source: str) -> Any:
    options = _union_options(hint)
    if options is not None:
        return _as_union(options, value, key, source)
    if hint is Any:
        return str(value) if isinstance(value, _Typed) else value
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise _Mismatch
        return from_mapping(typing.cast("type[Any]", hint), value, source=source, prefix=f"{key}.")
    origin = typing.get_origin(hint)
    if origin is Literal:
        return _as_literal(typing.get_args(hint), value)
    if origin in (tuple, list):
        return _as_sequence(hint, value, key, source)
    if hint is dict or origin is dict:
        if not isinstance(value, dict):
            raise _Mismatch
        value_hint = typing.get_args(hint)[1] if typing.get_args(hint) else Any
        return {
            str(name): _convert(value_hint, item, f"{key}.{name}", source) for name, item in value.items()
        }
    return _as_scalar(hint, value)


def _as_union(options: tuple[Any, ...], value: Any, key: str, source: str) -> Any:
    if types.NoneType in options and (value is None or _says_nothing(options, value)):
        return None
    for option in options:
        if option is types.NoneType:
            continue
        try:
            return _as_type(option, value, key, source)
        except _Mismatch:
            continue
    raise _Mismatch


def _says_nothing(options: tuple[Any, ...], value: Any) -> bool:
    """Whether a word from the command line stands for null, and is none of the words to choose from."""
    choices = [choice for option in options for choice in typing.get_args(option)]
    return isinstance(value, _Typed) and value.lower() in ("none", "null") and value not in choices


def _as_literal(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
        if isinstance(value, _Typed) and str(choice) == value:
            return choice
    raise _Mismatch


def _as_sequence(hint: Any, value: Any, key: str, source: str) -> Any:
    if isinstance(value, _Typed):
        inner = value.strip()
        if inner.startswith(("[", "(")) and inner.endswith(("]", ")")):
            inner = inner[1:-1]
        value = [_Typed(part.strip().strip("'\"")) for part in inner.split(",") if part.strip()]
    if not isinstance(value, (list, tuple)):
        raise _Mismatch
    args = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return [_convert(args[0], item, f"{key}[{index}]", source) for index, item in enumerate(value)]
    item_hints = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
    if len(item_hints) != len(value):
        raise _Mismatch
    items = zip(item_hints, value, strict=True)
    return tuple(
        _convert(item_hint, item, f"{key}[{index}]", source) for index, (item_hint, item) in enumerate(items)
    )


def _as_scalar(hint: Any, value: Any) -> Any:
    typed = isinstance(value, _Typed)
    if hint is bool:
        found = parse_bool(value) if typed else value
        if not isinstance(found, bool):
            raise _Mismatch
        return found
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        text = str(value)
        for member in hint:
            if text in (member.name, str(member.value)):
                return member
        raise _Mismatch
    if hint in (int, float):
        return _as_number(hint, value, typed)
    if hint is str:
        if not isinstance(value, str):
            raise _Mismatch
        return str(value)
    if hint is Path:
        if not isinstance(value, (str, Path)):
            raise _Mismatch
        return Path(value)
    raise TypeError(f"a settings field cannot have the type {hint!r}")


def _as_number(hint: type[int] | type[float], value: Any, typed: bool) -> int | float:
    # YAML 1.1 reads 2e-5 (no dot) as text; a learning rate written so is what the reader meant.
    if isinstance(value, str) and (typed or hint is float):
        try:
            return hint(value)
        except ValueError:
            raise _Mismatch from None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _Mismatch
    if hint is int and not isinstance(value, int):
        raise _Mismatch
    return hint(value)


def describe(hint: Any) -> str:
    """A type in words, for messages: "a whole number or none"."""
    options = _union_options(hint)
    if options is not None:
        return " or ".join(describe(option) for option in options)
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in typing.get_args(hint))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if origin in (tuple, list):
        return f"a list of {describe(typing.get_args(hint)[0])}"
    if dataclasses.is_dataclass(hint) or hint is dict or origin is dict:
        return "a mapping"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return "nothing (null)" if hint is types.NoneType else words.get(hint, str(hint))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_mapping(value)
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
