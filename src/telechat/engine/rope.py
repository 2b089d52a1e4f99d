"""Which rotary table each token of a request is computed with, past the length a model was trained for.

There the table depends on the length of the text, and a cached key keeps the table it was made with. The
three modes say what follows (`TeleChatModel` has them too). Decides with integers; knows no tensors.

`official`: the prompt has the table of its own length, each later token that of the length so far; keys stay
as they are. `consistent`: all tokens have the table of the present length, so a changed table means computing
everything again. `static`: one table for all.
"""

from __future__ import annotations

from dataclasses import dataclass

from telechat.layers.rotary import RopeSettings
from telechat.models import RopeMode

# What distinguishes one rotary table from another: the stretch of its base and its scale.
Epoch = tuple[int, float]


@dataclass(frozen=True)
class RopeRule:
    """The rotary tables of one model's requests.

    Attributes:
        static_length: tokens that the one table of mode `static` is made for.
    """

    mode: RopeMode
    settings: RopeSettings
    static_length: int

    def epoch(self, length: int) -> Epoch:
        """The table of a text of `length` tokens."""
        if self.mode == "static":
            return self.settings.stretch(self.static_length)
        return self.settings.stretch(length)

    def is_stale(self, epoch: Epoch | None, num_tokens: int) -> bool:
        """Keys made in `epoch` must be made again now that the text has `num_tokens` tokens."""
        return self.mode == "consistent" and epoch != self.epoch(num_tokens)

    def same_table(self, num_tokens: int) -> int:
        """A text of at most `num_tokens` tokens has one table as long as it has no more than so many."""
        return num_tokens if self.mode == "static" else min(num_tokens, self.settings.training_length)

    def spans(self, start: int, stop: int, num_prompt_tokens: int, num_tokens: int) -> list[tuple[int, int]]:
        """Tokens start .. stop - 1 as runs of one table each: (end of the run, length its table is for)."""
        if self.mode == "static":
            return [(stop, self.static_length)]
        if self.mode == "consistent":
            return [(stop, num_tokens)]
        longest = max(stop, num_prompt_tokens)
        if longest <= self.settings.training_length or stop <= num_prompt_tokens:
            return [(stop, longest)]
        runs: list[tuple[int, int]] = []
        for position in range(start, stop):
            length = max(position + 1, num_prompt_tokens)
            if runs and self.epoch(runs[-1][1]) == self.epoch(length):
                runs.pop()
            runs.append((position + 1, length))
        return runs

    def num_shareable(self, num_prompt_tokens: int, num_tokens: int) -> int:
        """Leading tokens whose keys have the prompt's own table; only those may serve other requests.

        Past the training length nearly every length has a table of its own, which no other text will ask for.
        """
        longest = max(num_prompt_tokens, num_tokens)
        if longest <= self.settings.training_length or self.epoch(num_prompt_tokens) == self.epoch(longest):
            return num_tokens
        if self.mode == "consistent":
            return 0
        return min(num_tokens, max(num_prompt_tokens, self.settings.training_length))
