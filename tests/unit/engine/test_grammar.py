"""Whatever a model says, an answer that ended follows its structure; what cannot compile is refused alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tokenizer_samples import build_byte_pairs, build_pieces
from tests.unit.engine.engine_samples import EOS, VOCAB_SIZE, ByteTokenizer, byte_tokenizer, tiny_llm

from telechat.engine import SamplingParams, StructuredOutputs
from telechat.engine.grammar import GrammarCompiler
from telechat.engine.intake import Intake
from telechat.engine.request import Request
from telechat.engine.sampler import Sampler
from telechat.errors import RequestError
from telechat.tokenizer import Tokenizer, load_tokenizer

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "名": {"type": "string", "maxLength": 6},
        "n": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "长"]}, "maxItems": 3},
    },
    "required": ["名", "n"],
    "additionalProperties": False,
}
CHOICES = ("是", "否 ", " maybe", "两者\n都不")
SUM = """
start: term (("+" | "-") term)*
term: NUMBER | "(" start ")"
NUMBER: /[0-9]{1,3}/
"""


def is_of_schema(text: str) -> bool:
    value = json.loads(text)
    tags = value.get("tags", [])
    return (
        set(value) <= {"名", "n", "tags"}
        and len(value["名"]) <= 6
        and isinstance(value["n"], int)
        and len(tags) <= 3
        and set(tags) <= {"a", "b", "长"}
    )


def is_sum(text: str) -> bool:
    return re.fullmatch(r"[0-9+()-]+", text) is not None and isinstance(
        eval(re.sub(r"\b0+(?=\d)", "", text)), int
    )


STRUCTURES: dict[str, tuple[StructuredOutputs, Callable[[str], bool]]] = {
    "json": (StructuredOutputs(json=SCHEMA), is_of_schema),
    "json text": (StructuredOutputs(json=json.dumps(SCHEMA)), is_of_schema),
    "object": (StructuredOutputs(json_object=True), lambda text: isinstance(json.loads(text), dict)),
    "regex": (
        StructuredOutputs(regex=r"1[3-9]\d{9}( |，)?[甲-癸]{0,2}"),
        lambda text: re.fullmatch(r"1[3-9][0-9]{9}( |，)?[甲-癸]{0,2}", text) is not None,
    ),
    "choice": (StructuredOutputs(choice=CHOICES), lambda text: text in CHOICES),
    "grammar": (StructuredOutputs(grammar=SUM), is_sum),
}


@pytest.fixture(scope="module", params=["bytes", "bpe", "telechat-12b", "telechat2"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "bytes":
        return byte_tokenizer()
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "bpe":
        return load_tokenizer(build_byte_pairs(folder))
    return load_tokenizer(build_pieces(folder, request.param))


def intake(tokenizer: Tokenizer, vocab_size: int) -> Intake:
    eos = tokenizer.special.eos
    return Intake(
        lambda skip: tokenizer.stream_decoder(skip_special_tokens=skip),
        vocab_size=vocab_size,
        eos_token_ids=[eos],
        max_model_len=1000,
        compile_grammar=GrammarCompiler(tokenizer, vocab_size=vocab_size, eos_token_ids=[eos]),
    )


def babble(request: Request, vocab_size: int, *, seed: int, num_drafts: int = 0) -> Request:
    """Let a model of random numbers answer, checking as many random drafts at each step."""
    generator = torch.Generator().manual_seed(seed)
    guesses = torch.randint(0, vocab_size, (1000, num_drafts), generator=generator).tolist()
    while not request.finish_reason and request.error is None:
        step = len(request.token_ids)
        request.draft_token_ids = guesses[step][: request.max_new_tokens - step - 1]
        if num_drafts and request.grammar is not None and step % 2:  # half of them the grammar allows
            bits = "".join(f"{word:032b}"[::-1] for word in request.grammar.masks()[0].tolist())
            request.draft_token_ids[:1] = [bits.index("1")]
        logits = torch.randn(1 + len(request.draft_token_ids), vocab_size, generator=generator) * 2
        [sampled] = Sampler([request], device=logits.device).sample(logits)
        request.error = sampled.error
        for token_id in sampled.token_ids:
            if not request.finish_reason:
                request.accept(token_id)
        request.draft_token_ids = []
    return request


@pytest.mark.parametrize("num_drafts", [0, 3])
@pytest.mark.parametrize("name", STRUCTURES)
def test_an_answer_that_ended_follows_its_structure(tokenizer: Tokenizer, name: str, num_drafts: int) -> None:
    asked, is_right = STRUCTURES[name]
    vocab_size = tokenizer.vocab_size + 45  # the model has rows without tokens
    make = intake(tokenizer, vocab_size)
    num_ended = 0
    for seed in range(30):
        params = SamplingParams(
            seed=seed, temperature=float(seed % 3), max_tokens=300, structured_outputs=asked, top_p=0.99
        )
        [request] = make.make_requests([tokenizer.special.eos], params)
        babble(request, vocab_size, seed=seed, num_drafts=num_drafts)
        assert request.error is None
        if request.finish_reason == "stop":
            num_ended += 1
            assert request.token_ids[-1] == tokenizer.special.eos
            assert is_right(request.text), request.text
    assert num_ended >= 10


def test_every_choice_comes_about() -> None:
    make = intake(byte_tokenizer(), VOCAB_SIZE)
    texts = set()
    for seed in range(60):
        params = SamplingParams(seed=seed, structured_outputs=StructuredOutputs(choice=CHOICES))
        texts.add(babble(make.make_requests([EOS], params)[0], VOCAB_SIZE, seed=seed).text)
    assert texts == set(CHOICES)


def test_text_behind_a_token_is_what_its_bytes_say(tokenizer: Tokenizer) -> None:
    """`token_bytes` against the tokenizer's own decoding, for tokens that are whole characters."""
    anchor = next(n for n in range(tokenizer.vocab_size) if tokenizer.token_bytes(n) == b"a")
    num_checked = 0
    for token_id in range(tokenizer.vocab_size):
        found = tokenizer.token_bytes(token_id)
        try:
            text = None if found is None else found.decode()
        except UnicodeDecodeError:
            continue
        num_checked += text is not None
        whole = tokenizer.decode([anchor, token_id, anchor], skip_special_tokens=True)
        if text is not None:
            assert whole == "a" + text + "a"
            is_dropped = token_id in tokenizer.dropped_space_ids
            assert tokenizer.decode([token_id, anchor]) == text[is_dropped:] + "a"
    assert num_checked > 100
    assert tokenizer.token_bytes(tokenizer.special.eos) is None


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (StructuredOutputs(regex="[a"), "unclosed"),
        (StructuredOutputs(regex="(?=a)b"), "look-around"),
        (StructuredOutputs(json={"type": "colour"}), "colour"),
        (StructuredOutputs(json={"$ref": "#/none"}), "none"),
        (StructuredOutputs(json="{not json"), "."),
        (StructuredOutputs(json={"not": {"type": "string"}}), "not"),
        (StructuredOutputs(grammar="begin: A"), "."),
    ],
    ids=str,
)
def test_what_does_not_compile_is_refused(asked: StructuredOutputs, reason: str) -> None:
    make = intake(byte_tokenizer(), VOCAB_SIZE)
    with pytest.raises(RequestError, match=reason) as caught:
        make.make_requests([EOS], SamplingParams(structured_outputs=asked))
    assert caught.value.parameter == "structured_outputs"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"regex": "a", "choice": ("b",)},
        {"choice": ()},
        {"choice": ("a", 3)},
        {"regex": 3},
        {"regex": ""},
        {"json": 3},
        {"json_object": "yes"},
    ],
    ids=str,
)
def test_structure_has_one_field_of_the_right_kind(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="structured_outputs"):
        StructuredOutputs(**fields)


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 3}], ids=str)
def test_what_contradicts_a_structure_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="structure"):
        SamplingParams(structured_outputs=StructuredOutputs(regex="a"), **fields)


def test_an_answer_that_nothing_continues_is_an_error_of_its_own() -> None:
    class WithoutPlus(ByteTokenizer):
        def token_bytes(self, token_id: int) -> bytes | None:
            found = super().token_bytes(token_id)
            return None if found == b"+" else found

    make = intake(WithoutPlus(), VOCAB_SIZE)  # type: ignore[arg-type]
    asked = SamplingParams(seed=0, structured_outputs=StructuredOutputs(regex=r"1\+1"))
    [stuck] = make.make_requests([EOS], asked)
    [free] = make.make_requests([EOS], SamplingParams(temperature=0.0))
    sampler = Sampler([stuck, free], device=torch.device("cpu"))
    for _ in range(2):
        for request, sampled in zip([stuck, free], sampler.sample(torch.zeros(2, VOCAB_SIZE)), strict=True):
            request.error = request.error or sampled.error
            request.token_ids += sampled.token_ids
    assert isinstance(stuck.error, RequestError) and stuck.error.parameter == "structured_outputs"
    assert free.error is None and len(free.token_ids) == 2


def test_structures_in_a_batch_beside_free_answers() -> None:
    """Through the whole engine: each follows its own structure, and those without are as alone."""
    llm = tiny_llm()
    free = SamplingParams(temperature=0.0, max_tokens=10)
    shaped = SamplingParams(
        seed=5, n=3, max_tokens=40, structured_outputs=StructuredOutputs(regex="[ab]{3,5}c")
    )
    chosen = SamplingParams(temperature=0.0, structured_outputs=StructuredOutputs(choice=["yes", "no"]))
    prompts = ["one", "two", "three"]
    outputs = llm.generate(prompts, [free, shaped, chosen])
    assert outputs[0].text == llm.generate("one", free)[0].text
    assert all(re.fullmatch("[ab]{3,5}c", completion.text) for completion in outputs[1].outputs)
    assert len({completion.text for completion in outputs[1].outputs}) > 1
    assert outputs[2].text in ("yes", "no")
    assert outputs[2].finish_reason == "stop"
    with pytest.raises(RequestError, match="compiled"):
        llm.generate("x", SamplingParams(structured_outputs=StructuredOutputs(regex="[")))


def test_a_structure_that_would_take_minutes_to_compile_is_refused() -> None:
    compile_grammar = GrammarCompiler(ByteTokenizer(), vocab_size=VOCAB_SIZE, eos_token_ids=[EOS])
    with pytest.raises(RequestError, match="too big"):
        compile_grammar(StructuredOutputs(choice=tuple(map(str, range(30_000)))))
    compile_grammar(StructuredOutputs(choice=tuple(map(str, range(2_000))))).masks()
