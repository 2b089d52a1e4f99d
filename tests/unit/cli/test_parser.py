"""Our manners on top of argparse."""

from __future__ import annotations

import pytest

from telechat.cli.parser import CommandParser, port_number, positive_int
from telechat.errors import UsageError


def make_parser() -> CommandParser:
    parser = CommandParser(
        "telechat try", summary="try things", examples=["telechat try a", "telechat try b"]
    )
    parser.add_argument("model", nargs="?")
    parser.add_argument("--max-new-tokens", type=positive_int)
    parser.add_argument("--port", type=port_number)
    parser.add_boolean("--raw", help="as it is")
    return parser


@pytest.mark.parametrize("name", ["--max-new-tokens", "--max_new_tokens", "--max_new-tokens"])
def test_underscore_or_dash(name: str) -> None:
    assert make_parser().parse([name, "5"]).max_new_tokens == 5
    assert make_parser().parse([f"{name}=5"]).max_new_tokens == 5


@pytest.mark.parametrize(
    ("words", "raw", "model"),
    [
        (["--raw", "demo"], True, "demo"),
        (["--raw", "True", "demo"], True, "demo"),
        (["--raw", "false", "demo"], False, "demo"),
        (["--raw=False", "demo"], False, "demo"),
        (["demo", "--raw"], True, "demo"),
        (["demo"], False, "demo"),
    ],
)
def test_boolean_words(words: list[str], raw: bool, model: str) -> None:
    args = make_parser().parse(words)
    assert (args.raw, args.model) == (raw, model)


def test_values_keep_their_underscores() -> None:
    assert make_parser().parse(["--", "--a_b"]).model == "--a_b"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--max-new-token", "5"], ["--max-new-token", "Did you mean --max-new-tokens?"]),
        (["--zzz"], ["--zzz", "telechat try --help"]),
        (["a", "b"], ["'b'"]),
        (["--max-new-tokens", "0"], ["--max-new-tokens", "0 is below 1"]),
        (["--max-new-tokens", "x"], ["'x' is not a whole number"]),
        (["--port", "70000"], ["70000", "65535"]),
        (["--port"], ["--port"]),
        (["--raw=maybe"], ["maybe", "neither True nor False"]),
    ],
)
def test_mistakes_are_usage_errors(words: list[str], parts: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        make_parser().parse(words)
    for part in parts:
        assert part in str(caught.value)


def test_overrides_are_collected() -> None:
    parser = make_parser()
    parser.override_keys = frozenset({"schedule.warmup_steps", "data.path", "seed"})
    args = parser.parse(["demo", "--schedule.warmup-steps", "3", "--data.path=a=b", "--seed", "7", "--raw"])
    assert args.overrides == {"schedule.warmup_steps": "3", "data.path": "a=b", "seed": "7"}
    assert args.raw and args.model == "demo"
    with pytest.raises(UsageError, match=r"Unknown option --sede .* Did you mean --seed"):
        parser.parse(["--sede", "7"])
    with pytest.raises(UsageError, match=r"--a\.b needs a value"):
        parser.parse(["--a.b"])
    with pytest.raises(UsageError, match="Unknown option"):
        make_parser().parse(["--a.b", "1"])
