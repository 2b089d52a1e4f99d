"""Every exception that telechat raises for its users.

Each one carries a message (what was wrong, the value, the limit) and, where we know one, a hint (what to do
next). The command line prints both as one line and exits with `exit_code`; the service turns them into the
error body of its protocol. Broken invariants of our own are `AssertionError`, never one of these.
"""

from __future__ import annotations


class TelechatError(Exception):
    """Base of all errors meant for the user.

    Args:
        message: what was wrong, with the value and the limit.
        hint: the next step, as an imperative sentence; None when there is nothing better to say.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross from the engine's process to the service's. The default would call the constructor with
        # the message alone, which the subclasses' constructors do not take.
        return _restore, (type(self), self.args), self.__dict__


class UsageError(TelechatError):
    """A flag or a value on the command line that cannot be taken."""

    exit_code = 2


class ConfigError(TelechatError):
    """A configuration file or value that is malformed, unknown or contradictory."""


class CheckpointError(TelechatError):
    """Weights that are missing, extra, misshapen, truncated or in a format we refuse to load."""


class TokenizerError(TelechatError):
    """Tokenizer files that are missing, malformed or do not fit the model."""


class PromptError(TelechatError):
    """A prompt or conversation that cannot be turned into model input."""


class ContextLengthError(PromptError):
    """A prompt longer than the model's context."""

    def __init__(self, num_tokens: int, limit: int, *, hint: str | None = None) -> None:
        super().__init__(
            f"The prompt has {num_tokens} tokens; this model accepts {limit}.",
            hint=hint or "Shorten the prompt or lower max_tokens.",
        )
        self.num_tokens = num_tokens
        self.limit = limit


class RequestError(TelechatError):
    """A generation request with a parameter out of range. `parameter` names the field."""

    def __init__(self, message: str, *, parameter: str | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.parameter = parameter


class HubError(TelechatError):
    """A model hub that is unreachable, refuses access or delivers damaged files."""


class DeviceError(TelechatError):
    """A device, kernel or attention implementation that was asked for by name and cannot run here."""


class RankError(TelechatError):
    """A rank of a model spread over several processes that could not start, or that ended."""


class MissingExtraError(TelechatError):
    """An optional package that is not installed; names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"This needs the package {package}, which is not installed.",
            hint=f"Install it with: pip install 'telechat[{extra}]'",
        )


def _restore(kind: type[TelechatError], args: tuple[object, ...]) -> TelechatError:
    return kind.__new__(kind, *args)
