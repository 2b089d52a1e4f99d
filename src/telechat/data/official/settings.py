"""Options of the original command lines that ours has no other place for."""

from __future__ import annotations

from dataclasses import dataclass

from telechat.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OfficialSettings:
    """What the official mode does besides its defaults.

    Attributes:
        num_samples: TeleChat1: samples to make, in passes over the same rows; 0 for one pass.
        num_workers: shards that are packed on their own.
        with_loss_mask: TeleChat1: learn the turns; else every token, padding included.
        group_texts: pre-training: all texts end to end, cut at the length.
    """

    num_samples: int = 0
    num_workers: int = 1
    with_loss_mask: bool = True
    group_texts: bool = False

    def __post_init__(self) -> None:
        if self.num_samples < 0 or self.num_workers < 1:
            raise ConfigError(
                f"num_samples is {self.num_samples} and num_workers {self.num_workers}; "
                "they must be at least 0 and 1."
            )
