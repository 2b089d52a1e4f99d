"""An inspection as text for a terminal; without colours the learnt stretches stand in brackets."""

from __future__ import annotations

from itertools import groupby

from telechat.data.inspection import Inspection, ShownSequence, ShownToken

_BAR_WIDTH = 40
_RESET = "\x1b[0m"
_LEARNT, _CONTEXT, _CONTROL, _BORDER = "\x1b[32m", "\x1b[2m", "\x1b[1m", "\x1b[36m"
_OPEN, _CLOSE = "⟦", "⟧"


def render_text(inspection: Inspection, *, colours: bool) -> str:
    """The page as one string that ends with a newline."""
    lines = [str(inspection.accounting), f"tokens of {inspection.tokenizer}", ""]
    lines += [f"malformed: {bad}" for bad in inspection.accounting.bad_rows]
    lines += ["lengths in tokens", *_bars(inspection), ""]
    learnt = f"{_LEARNT}learnt{_RESET}" if colours else f"{_OPEN}learnt{_CLOSE}"
    lines.append(f"samples ({learnt}, {_coloured('context', _CONTEXT, colours)})")
    for number, sample in enumerate(inspection.samples, 1):
        lines.append(_coloured(f"══ sample {number} ══", _BORDER, colours))
        for sequence in sample:
            lines.append(_coloured(f"── {sequence.title} ──", _BORDER, colours))
            lines.append(_sequence(sequence, colours))
    return "\n".join(lines) + "\n"


def _bars(inspection: Inspection) -> list[str]:
    most = max((bar.count for bar in inspection.bars), default=0)
    lines = []
    for bar in inspection.bars:
        filled = "█" * -(-bar.count * _BAR_WIDTH // most) if most else ""
        lines.append(f"{bar.low:>8}–{bar.high:<8} {bar.count:>9,} {filled}".rstrip())
    return lines


def _sequence(sequence: ShownSequence, colours: bool) -> str:
    parts = []
    for is_target, run in groupby(sequence.tokens, key=lambda token: token.is_target):
        text = "".join(_token(token, colours) for token in run)
        parts.append(text if colours or not is_target else f"{_OPEN}{text}{_CLOSE}")
    return "".join(parts)


def _token(token: ShownToken, colours: bool) -> str:
    if not colours:
        return token.text
    return (
        (_CONTROL if token.is_control else "")
        + (_LEARNT if token.is_target else _CONTEXT)
        + token.text
        + _RESET
    )


def _coloured(text: str, colour: str, colours: bool) -> str:
    return f"{colour}{text}{_RESET}" if colours else text
