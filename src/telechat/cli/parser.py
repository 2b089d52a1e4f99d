"""Argument parsing with our manners, on top of argparse.

Adds to argparse: options may be spelled with `_` or `-`; boolean options also take the words True and False;
an unknown option is an error that names the nearest known one; every error is a UsageError. It knows no verb.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from telechat import __version__
from telechat.errors import UsageError
from telechat.logs import LEVELS
from telechat.registry import nearest

_BOOLEAN_WORDS = {"true": True, "false": False}


class CommandParser(argparse.ArgumentParser):
    """The parser of one verb.

    Args:
        command: what was typed: "telechat tokenizer train".
        summary: one line, shown at the top of the help.
        examples: commands that work when pasted, shown at the end of the help.
    """

    def __init__(self, command: str, *, summary: str, examples: Sequence[str]) -> None:
        super().__init__(
            prog=command,
            description=summary[:1].upper() + summary[1:] + ".",
            epilog="examples:\n" + "\n".join(f"  {example}" for example in examples),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._booleans: set[str] = set()
        self.override_keys: frozenset[str] = frozenset()
        common = self.add_argument_group("common options")
        common.add_argument("--debug", action="store_true", help="show the traceback of an error")
        common.add_argument("--log-level", choices=LEVELS, default=None, help="how much to log on stderr")
        common.add_argument("--version", action="version", version=f"telechat {__version__}")

    def add_boolean(self, name: str, *, default: bool = False, help: str) -> None:
        """Add `--name`, which means True, and also takes the words True and False."""
        self._booleans.add(name)
        self.add_argument(name, type=_boolean_word, default=default, metavar="True|False", help=help)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint=f"See {self.prog} --help.")

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the verb. Unknown options are a UsageError with the nearest known one.

        Where `override_keys` names the fields of a recipe, `--section.key value` and `--key value` of a field
        without a section are collected in `args.overrides`; whether a dotted one exists is checked later.
        """
        words, overrides = self._split_overrides(self._normalise(list(argv)))
        args, unknown = self.parse_known_args(words)
        if unknown:
            self._refuse(unknown[0])
        if self.override_keys:
            args.overrides = overrides
        return args

    def _normalise(self, words: list[str]) -> list[str]:
        """Spell options with dashes and give bare boolean options the value True."""
        result: list[str] = []
        index = 0
        while index < len(words):
            word = words[index]
            index += 1
            if word == "--":
                return [*result, word, *words[index:]]
            if word.startswith("--"):
                name, equals, value = word.partition("=")
                name = name.replace("_", "-")
                if name in self._booleans and not equals:
                    following = words[index].lower() if index < len(words) else ""
                    value = "True"
                    if following in _BOOLEAN_WORDS:
                        value = words[index]
                        index += 1
                    equals = "="
                word = f"{name}{equals}{value}"
            result.append(word)
        return result

    def _split_overrides(self, words: list[str]) -> tuple[list[str], dict[str, str]]:
        """Take `--section.key value` and `--section.key=value` out of the words."""
        if not self.override_keys:
            return words, {}
        rest: list[str] = []
        overrides: dict[str, str] = {}
        index = 0
        while index < len(words):
            word = words[index]
            index += 1
            name, equals, value = word.partition("=")
            key = name[2:].replace("-", "_")
            if not name.startswith("--") or not ("." in key or key in self.override_keys):
                rest.append(word)
                continue
            if not equals:
                if index == len(words):
                    raise UsageError(f"{name} needs a value.", hint=f"Write {name} VALUE.")
                value = words[index]
                index += 1
            overrides[key] = value
        return rest, overrides

    def _refuse(self, word: str) -> NoReturn:
        name = word.partition("=")[0]
        if not name.startswith("-"):
            raise UsageError(f"Unexpected argument {word!r}.", hint=f"See {self.prog} --help.")
        known = [option for action in self._actions for option in action.option_strings]
        known += [f"--{key.replace('_', '-')}" for key in self.override_keys]
        guess = nearest(name, known)
        hint = f"Did you mean {guess}?" if guess else f"See {self.prog} --help."
        raise UsageError(f"Unknown option {name} for {self.prog}.", hint=hint)


def _boolean_word(text: str) -> bool:
    value = _BOOLEAN_WORDS.get(text.lower())
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return value


def positive_int(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    value = _whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return value


def non_negative_int(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    value = _whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def byte_size(text: str) -> int:
    """An argparse type: a number of bytes with a unit, `8GiB` or `500MB`; binary units have an i."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)(i?)B?", text, re.IGNORECASE)
    factor = 0.0
    if match is not None and (match[2] or not match[3]):
        base = 1024 if match[3] else 1000
        factor = base ** " kmgt".index(match[2].lower() or " ")
    if match is None or not factor:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 8GiB")
    size = int(float(match[1]) * factor)
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than a byte")
    return size


def port_number(text: str) -> int:
    """An argparse type: a TCP port, 1 to 65535."""
    value = _whole(text)
    if not 1 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port; ports go from 1 to 65535")
    return value


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
