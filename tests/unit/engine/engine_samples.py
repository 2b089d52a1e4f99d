"""A random tiny model and a tokenizer of one id per byte, for tests of the engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch

from telechat.engine import LLM, SamplingParams
from telechat.layers.rotary import RopeSettings
from telechat.models import RopeMode, TeleChatConfig, TeleChatModel, build_model, initialise
from telechat.tokenizer import SpecialTokens, StreamDecoder, Tokenizer
from telechat.tokenizer.stream import ByteStreamDecoder

FIRST_BYTE = 8
VOCAB_SIZE = FIRST_BYTE + 256
EOS = 2
TRAINING_LENGTH = 128

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)


class ByteTokenizer:
    """Ids 8 to 263 are bytes (and again, for larger models), the first eight are control tokens."""

    vocab_size = VOCAB_SIZE
    special = SpecialTokens(unk=0, bos=1, eos=EOS, pad=3, user=4, bot=5, system=6)
    folder = Path("byte-tokenizer")

    def encode(self, text: str) -> list[int]:
        return [FIRST_BYTE + byte for byte in text.encode()]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        return b"".join(self._bytes(token_id) for token_id in ids).decode(errors="replace")

    dropped_space_ids = frozenset[int]()

    def id_to_token(self, token_id: int) -> str:
        return f"<{token_id}>"

    def token_bytes(self, token_id: int) -> bytes | None:
        return self._bytes(token_id) or None

    def stream_decoder(self, *, skip_special_tokens: bool = True) -> StreamDecoder:
        if skip_special_tokens:
            return ByteStreamDecoder(self._bytes)
        return ByteStreamDecoder(lambda token_id: self._bytes(token_id) or f"<{token_id}>".encode())

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> list[int]:
        ids: list[int] = [7] if tools else []
        for message in messages:
            ids += [4 if message["role"] == "user" else 5, *self.encode(message["content"])]
        return [*ids, 5]

    @staticmethod
    def _bytes(token_id: int) -> bytes:
        return bytes([(token_id - FIRST_BYTE) % 256]) if token_id >= FIRST_BYTE else b""


def byte_tokenizer() -> Tokenizer:
    return cast("Tokenizer", ByteTokenizer())


@cache
def tiny_model(rope_mode: RopeMode = "static", static_length: int | None = None) -> TeleChatModel:
    """Grouped-query, untied, with random weights large enough that answers wander. Do not change it."""
    config = TeleChatConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        ffn_hidden_size=48,
        initializer_range=0.25,
        rope=RopeSettings(base_length=TRAINING_LENGTH, training_length=TRAINING_LENGTH),
    )
    model = build_model(config, rope_mode=rope_mode, static_length=static_length)
    initialise(model, seed=0)
    return model.eval().requires_grad_(False)


def tiny_llm(model: TeleChatModel | None = None, **settings: Any) -> LLM:
    return LLM(model or tiny_model(), byte_tokenizer(), **settings)


def greedy_without_cache(model: TeleChatModel, prompt: list[int], num_tokens: int) -> list[int]:
    """The oracle: the whole sequence through the model for every token."""
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def random_prompts(count: int, *, seed: int, longest: int = 60) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=generator).tolist()
    return [torch.randint(FIRST_BYTE, VOCAB_SIZE, (n,), generator=generator).tolist() for n in lengths]
