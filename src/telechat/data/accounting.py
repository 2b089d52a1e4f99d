"""Where every row and every token of the files went: trained on, context, or dropped for a named reason.

The identity, checked whenever samples are made:

    read + added by name = trained + context + dropped by name        (tokens)
    read + added by name = used + dropped by name                     (rows)

Trained and context are counted in the finished samples, the rest while reading, so a token lost in between
breaks the identity. Padding is no token of the files; it is not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from telechat.data.rows import BadRow

COPIES = "copies by the weight of their file"
NOT_DRAWN = "not drawn, by the weight of their file"
MALFORMED = "malformed"


def too_long(max_length: int) -> str:
    """The reason for rows over the length."""
    return f"longer than {max_length} tokens"


NOTHING_LEARNT = "nothing to learn in them"


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """The books of one set of samples.

    Attributes:
        rows_read: rows in the files, malformed ones included.
        tokens_read: tokens of the well-formed ones.
        rows_added, tokens_added: what came on top, by reason.
        rows_dropped, tokens_dropped: what was left out, by reason. Malformed rows have no tokens.
        rows_used: rows in the samples, copies included.
        tokens_trained: targets.
        tokens_context: tokens in the samples that carry no loss.
        num_sequences: conversations, texts or pieces of texts in the samples.
        num_samples: samples.
        max_length: tokens that a sample can hold.
        bad_rows: the first malformed rows.
        files: each file with what its rows were recognised as, and why.
    """

    rows_read: int
    tokens_read: int
    rows_added: Mapping[str, int]
    tokens_added: Mapping[str, int]
    rows_dropped: Mapping[str, int]
    tokens_dropped: Mapping[str, int]
    rows_used: int
    tokens_trained: int
    tokens_context: int
    num_sequences: int
    num_samples: int
    max_length: int
    bad_rows: tuple[BadRow, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tokens_in = self.tokens_read + sum(self.tokens_added.values())
        tokens_out = self.tokens_trained + self.tokens_context + sum(self.tokens_dropped.values())
        assert tokens_in == tokens_out, f"{tokens_in} tokens came in and {tokens_out} are accounted for"
        rows_in = self.rows_read + sum(self.rows_added.values())
        rows_out = self.rows_used + sum(self.rows_dropped.values())
        assert rows_in == rows_out, f"{rows_in} rows came in and {rows_out} are accounted for"

    @property
    def fill(self) -> float:
        """Share of the samples' places that hold tokens."""
        places = self.num_samples * self.max_length
        return (self.tokens_trained + self.tokens_context) / places if places else 0.0

    def lines(self) -> list[tuple[str, int, int]]:
        """The table: (what, rows, tokens); the rows of `in` and of `out` each add up."""
        added = sorted(set(self.rows_added) | set(self.tokens_added))
        dropped = sorted(set(self.rows_dropped) | set(self.tokens_dropped))
        return [
            ("read", self.rows_read, self.tokens_read),
            *((f"+ {name}", self.rows_added.get(name, 0), self.tokens_added.get(name, 0)) for name in added),
            ("= in the samples", self.rows_used, self.tokens_trained + self.tokens_context),
            *(
                (f"+ dropped: {name}", self.rows_dropped.get(name, 0), self.tokens_dropped.get(name, 0))
                for name in dropped
            ),
        ]

    def summary(self) -> str:
        """One sentence on what the samples hold."""
        return (
            f"{self.tokens_trained:,} tokens are trained on and {self.tokens_context:,} are context, in "
            f"{self.num_sequences:,} sequences in {self.num_samples:,} samples of {self.max_length:,} "
            f"({self.fill:.1%} full)."
        )

    def __str__(self) -> str:
        width = max(len(what) for what, _, _ in self.lines())
        table = [f"{path}: {kind}" for path, kind in self.files.items()]
        table += [f"{'':<{width}}  {'rows':>12}  {'tokens':>14}"]
        table += [f"{what:<{width}}  {rows:>12,}  {tokens:>14,}" for what, rows, tokens in self.lines()]
        table.append(self.summary())
        return "\n".join(table)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for metrics and caches."""
        return {
            **{name: getattr(self, name) for name in _COUNTS},
            **{name: dict(getattr(self, name)) for name in _BY_REASON},
            "bad_rows": [{**asdict(row), "path": str(row.path)} for row in self.bad_rows],
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Accounting:
        """What `to_json` gave."""
        bad = tuple(BadRow(Path(row["path"]), row["line"], row["problem"]) for row in values["bad_rows"])
        return cls(**{**values, "bad_rows": bad})


_COUNTS = (
    *("rows_read", "tokens_read", "rows_used", "tokens_trained", "tokens_context"),
    *("num_sequences", "num_samples", "max_length"),
)
_BY_REASON = ("rows_added", "tokens_added", "rows_dropped", "tokens_dropped")
