"""Answers that follow a JSON schema, a regular expression, choices or a grammar.

`llguidance` reads what is asked for and says, before each token, which tokens may come. Here are the mapping
of our tokenizers onto its picture of a vocabulary, and the state of one answer. Knows nothing of logits.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from telechat.engine.sampling_params import StructuredOutputs
from telechat.errors import RequestError
from telechat.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

Mask = npt.NDArray[np.uint32]

# Compiled grammars kept for the next request that asks for the same.
_NUM_KEPT = 64
# Symbols of a grammar. The time to compile one grows with their square, and every answer of the engine waits:
# at this size it is a second or two, at llguidance's own limit of 500,000 many minutes.
MAX_GRAMMAR_SIZE = 20_000
# Between the tokens of a JSON text there may be this much white space: enough for any indentation, and an end
# for a model that would go on with blank lines for ever.
_JSON_OPTIONS: Any = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,40}"}


class Grammar:
    """What one answer may still become.

    Args:
        matcher: at the beginning; this object's own.
        dropped_space: tokens whose leading space decoding drops at the beginning of a text, as a mask.
    """

    def __init__(self, matcher: LLMatcher, dropped_space: Mask | None) -> None:
        self._matcher = matcher
        self._dropped_space = dropped_space
        self._num_taken = 0

    def catch_up(self, answer_token_ids: Sequence[int]) -> None:
        """Take in what the answer has gained since the last call; it only ever grows."""
        gained = answer_token_ids[self._num_taken :]
        if gained:
            self._matcher.try_consume_tokens(list(gained))
            self._num_taken += len(gained)

    def num_allowed(self, drafts: Sequence[int]) -> int:
        """How many of the drafts, from the first on, the grammar would take."""
        return self._matcher.validate_tokens(list(drafts))

    def masks(self, drafts: Sequence[int] = ()) -> list[Mask]:
        """Which tokens may come next, and behind each of the drafts as far as they follow the grammar.

        Returns:
            uint32 words with one bit per token, lowest bit first.

        Raises:
            RequestError: nothing can follow, or the grammar has become too complex to tell.
        """
        masks = [self._mask(is_first=self._num_taken == 0)]
        num_consumed = 0
        for draft in drafts:
            # Behind the end there is nothing; the mask of an end token is that of the tokens before it.
            if not _has(masks[-1], draft) or not self._matcher.try_consume_tokens([draft]):
                break
            num_consumed += 1
            masks.append(self._mask(is_first=False))
        if num_consumed:
            self._matcher.rollback(num_consumed)
        return masks

    def _mask(self, *, is_first: bool) -> Mask:
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)
        if self._matcher.is_error():
            raise RequestError(
                f"The grammar cannot be followed any further: {_gist(self._matcher.get_error())}",
                parameter="structured_outputs",
                hint="Ask for something simpler.",
            )
        if is_first and self._dropped_space is not None:
            mask = mask & ~self._dropped_space
        if not mask.any():
            raise RequestError(
                "No token of the vocabulary continues the answer as its grammar demands.",
                parameter="structured_outputs",
            )
        return mask


class GrammarCompiler:
    """Makes grammars for one vocabulary. Any thread may use it.

    Args:
        tokenizer: says which text each token stands for.
        vocab_size: of the model, which may have more rows than the tokenizer has tokens.
        eos_token_ids: tokens that may end an answer where its grammar is satisfied, and nowhere else.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._lock = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._dropped_space: Mask | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def __call__(self, asked: StructuredOutputs) -> Grammar:
        """The grammar of one answer, at its beginning.

        Raises:
            RequestError: it does not compile.
        """
        source = _source(asked)
        with self._lock:
            vocabulary = self._vocabulary or self._read_vocabulary()
            matcher = self._compiled.get(source)
        if matcher is None:
            from llguidance import LLMatcher, LLParserLimits

            limits = LLParserLimits(max_grammar_size=MAX_GRAMMAR_SIZE)
            matcher = LLMatcher(vocabulary, source, log_level=0, limits=limits)
            if matcher.is_error():
                raise _refusal(matcher.get_error())
        with self._lock:
            self._compiled[source] = matcher
            self._compiled.move_to_end(source)
            if len(self._compiled) > _NUM_KEPT:
                self._compiled.popitem(last=False)
            return Grammar(matcher.deep_copy(), self._dropped_space)

    def _read_vocabulary(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        tokens = _Tokens(self._tokenizer, self._vocab_size, self._eos_token_ids[0])
        self._vocabulary = LLTokenizer(
            TokenizerWrapper(tokens), n_vocab=self._vocab_size, eos_token=self._eos_token_ids
        )
        dropped = self._tokenizer.dropped_space_ids
        if dropped:
            is_dropped = np.zeros((self._vocab_size + 31) // 32 * 32, np.uint8)
            is_dropped[list(dropped)] = 1
            self._dropped_space = np.packbits(is_dropped, bitorder="little").view(np.uint32)
        return self._vocabulary


class _Tokens:
    """A vocabulary as llguidance wants to see it: the bytes of every token, and which are no text."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_id: int) -> None:
        self.eos_token_id = eos_token_id
        self.bos_token_id = None
        self.tokens: list[bytes] = []
        self.special_token_ids: list[int] = []
        for token_id in range(vocab_size):
            text = tokenizer.token_bytes(token_id)
            if text is None:
                self.special_token_ids.append(token_id)
                text = (tokenizer.id_to_token(token_id) or f"<[{token_id}]>").encode()
            self.tokens.append(text)
        special = set(self.special_token_ids)
        self._ids = {text: token_id for token_id, text in enumerate(self.tokens) if token_id not in special}
        self._most_bytes = max(map(len, self._ids))

    def __call__(self, text: bytes) -> list[int]:
        """Token ids that spell exactly `text`, the longest first; an end that no token spells is left out.

        Asked for what a grammar fixes anyway. The tokenizer's own way may put a space before a text.
        """
        ids, start = [], 0
        while start < len(text):
            for stop in range(min(len(text), start + self._most_bytes), start, -1):
                token_id = self._ids.get(text[start:stop])
                if token_id is not None:
                    ids.append(token_id)
                    start = stop
                    break
            else:
                break
        return ids


def _source(asked: StructuredOutputs) -> str:
    """The grammar in llguidance's own form.

    Raises:
        RequestError: a text that should be JSON is none.
    """
    from llguidance import LLMatcher, regex_to_lark

    if asked.regex is not None:
        pattern = regex_to_lark(asked.regex, use_ascii="d")
        return LLMatcher.grammar_from_lark(f"start: /{pattern}/")
    if asked.choice is not None:
        quoted = " | ".join(json.dumps(choice) for choice in asked.choice)
        return LLMatcher.grammar_from_lark(f"start: {quoted}")
    if asked.grammar is not None:
        return LLMatcher.grammar_from_lark(asked.grammar)
    schema = {"type": "object"} if asked.json is None else asked.json
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return LLMatcher.grammar_from_json_schema(text, overrides=_JSON_OPTIONS)
    except (TypeError, ValueError) as error:
        raise _refusal(str(error)) from error


def _refusal(reason: str) -> RequestError:
    return RequestError(
        f"structured_outputs cannot be compiled: {_gist(reason)}.", parameter="structured_outputs"
    )


def _gist(report: str) -> str:
    """The line of llguidance's report that says what is wrong."""
    lines = [line.strip() for line in report.splitlines() if line.strip()] or ["no reason given"]
    errors = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return (errors or lines)[0].rstrip(".:")[:300]


def _has(mask: Mask, token_id: int) -> bool:
    return bool(mask[token_id // 32] >> np.uint32(token_id % 32) & np.uint32(1))
