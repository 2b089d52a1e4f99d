"""What a MindIE configuration says that only the MindIE routes obey. Knows neither files nor HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from telechat.errors import ConfigError

# MindIE's own, where its configuration is silent.
DEFAULT_MAX_ITER_TIMES = 512


@dataclass(frozen=True, kw_only=True)
class MindieSettings:
    """Limits and facts of the MindIE routes.

    Attributes:
        max_iter_times: most tokens of an answer on these routes, whatever a request asks for; None is no
            limit.
        max_prefill_tokens: reported by `/info`; None where nobody has set it.
        max_batch_size: reported by `/info` and `getSlotCount`; None where nobody has set it.
        management_port: the port where `/stopService` works; None is nowhere.
        announces: say MindIE's words once the service is ready.
    """

    max_iter_times: int | None = None
    max_prefill_tokens: int | None = None
    max_batch_size: int | None = None
    management_port: int | None = None
    announces: bool = False

    def __post_init__(self) -> None:
        for name in ("max_iter_times", "max_prefill_tokens", "max_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
