"""Each sampling option does what it says, in torch and in C; the fast paths agree with the plain contract."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tests.unit.engine.engine_samples import ByteTokenizer
from torch import Tensor

from telechat.engine import SamplingParams
from telechat.engine.draws import Draws, streams, uniforms
from telechat.engine.history import History
from telechat.engine.request import Request
from telechat.engine.sampler import Choose, CompiledChoose, Sampled, Sampler, choose_in_torch
from telechat.engine.text import TextStream
from telechat.engine.truncation import keep_mask
from telechat.ops.cpu import library
from telechat.ops.cpu.context import LEVELS, available_levels, shared_context
from telechat.ops.cpu.sample import ROW

VOCAB = 400
PROMPT = [5, 6, 6]
ANSWER = [7, 8, 8, 8]


@pytest.fixture(params=["torch", *LEVELS])
def choose(request: pytest.FixtureRequest) -> Iterator[Choose]:
    """Every form: plain torch, and C at every instruction set level of this machine."""
    if request.param == "torch":
        yield choose_in_torch
        return
    reason = library.obstacle()
    if reason:
        pytest.skip(f"no CPU kernels: {reason}")
    if request.param not in available_levels():
        pytest.skip(f"this processor has no {request.param}")
    yield CompiledChoose(shared_context(1, request.param))


def request(params: SamplingParams, **settings: object) -> Request:
    return Request(
        prompt_token_ids=list(PROMPT),
        params=params,
        max_new_tokens=100,
        text_stream=TextStream(ByteTokenizer().stream_decoder()),
        **{"stop_token_ids": frozenset(), "token_ids": list(ANSWER), **settings},  # type: ignore[arg-type]
    )


def sample(logits: Tensor, *requests: Request, choose: Choose | None = None) -> list[Sampled]:
    return Sampler(requests, device=logits.device, choose=choose).sample(logits.clone())


def tokens(sampled: list[Sampled]) -> list[int]:
    """The one token of each request."""
    return [one.token_ids[0] for one in sampled if len(one.token_ids) == 1]


def scores(logits: Tensor, params: SamplingParams, choose: Choose | None = None) -> Tensor:
    """The processed scores that the sampler reports for one request."""
    [kept] = sample(logits[None], request(params, keep_scores="all"), choose=choose)[0].scores
    assert isinstance(kept, Tensor)
    return kept


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def random_rows(num_rows: int, params: SamplingParams, *, seed: int = 0) -> np.ndarray:
    rows = np.zeros(num_rows, ROW)
    rows["temperature"], rows["top_k"] = params.temperature, params.top_k
    rows["top_p"], rows["min_p"], rows["repetition"] = params.top_p, params.min_p, 1
    rows["uniform"] = np.random.default_rng(seed).random(num_rows)
    return rows


def plain_mass(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """By the definition: fp64 [V], the probability of all tokens up to each."""
    scores = logits_V.double() / params.temperature
    kept = keep_mask(scores, top_k=params.top_k, top_p=params.top_p, min_p=params.min_p)
    return torch.softmax(torch.where(kept, scores, -torch.inf), -1).cumsum(-1)


def test_temperature_zero_takes_the_largest(choose: Choose) -> None:
    logits = random_logits(3, VOCAB)
    chosen = sample(logits, *[request(SamplingParams(temperature=0.0)) for _ in range(3)], choose=choose)
    assert tokens(chosen) == logits.argmax(-1).tolist()


def test_of_equal_scores_the_first_is_taken(choose: Choose) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [99, 130, 390]] = 1.0
    assert tokens(sample(logits, request(SamplingParams(temperature=0.0)), choose=choose)) == [99]


def test_repetition_penalty_is_that_of_transformers(choose: Choose) -> None:
    logits = random_logits(VOCAB)
    expected = logits.clone()
    for token_id in {*PROMPT, *ANSWER}:
        expected[token_id] = logits[token_id] / 1.3 if logits[token_id] > 0 else logits[token_id] * 1.3
    params = SamplingParams(temperature=0.0, repetition_penalty=1.3)
    torch.testing.assert_close(scores(logits, params, choose), expected)


def test_presence_and_frequency_penalties_count_the_answer_only(choose: Choose) -> None:
    logits = random_logits(VOCAB)
    expected = logits.clone()
    expected[7] -= 0.5 + 1 * 0.25
    expected[8] -= 0.5 + 3 * 0.25
    params = SamplingParams(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25)
    torch.testing.assert_close(scores(logits, params, choose), expected)
    with_all = params.replace(repetition_penalty=2.0)
    both = torch.where(logits > 0, logits / 2, logits * 2)
    seen = [*{*PROMPT, *ANSWER}]
    expected = torch.where(torch.isin(torch.arange(VOCAB), torch.tensor(seen)), both, logits)
    expected[7] -= 0.75
    expected[8] -= 1.25
    torch.testing.assert_close(scores(logits, with_all, choose), expected)


def test_penalties_follow_a_growing_answer(choose: Choose) -> None:
    """The same request sampled again and again counts what it has gained, and only that."""
    params = SamplingParams(temperature=0.0, frequency_penalty=0.5, repetition_penalty=1.2)
    one = request(params, keep_scores="all")
    sampler = Sampler([one], device=torch.device("cpu"), choose=choose)
    for step in range(100):
        logits = random_logits(1, VOCAB, seed=step)
        [grown] = sampler.sample(logits.clone())[0].scores
        [fresh] = sample(logits, request(params, keep_scores="all", token_ids=list(one.token_ids)))[0].scores
        assert isinstance(grown, Tensor) and isinstance(fresh, Tensor)
        torch.testing.assert_close(grown, fresh)
        one.token_ids.append(step % 90 + 10)


def test_history_is_what_counting_says() -> None:
    answer = torch.randint(0, 200, (500,), generator=torch.Generator().manual_seed(0)).tolist()
    history = History(PROMPT)
    for length in (0, 1, 70, 500):
        history.catch_up(answer[:length])
        expected = {token_id: answer[:length].count(token_id) for token_id in {*PROMPT, *answer[:length]}}
        assert dict(zip(history.ids.tolist(), history.counts.tolist(), strict=True)) == expected
    longer = history.followed_by([3, 3])
    assert longer.counts.sum() == history.counts.sum() + 2


def test_logit_bias(choose: Choose) -> None:
    logits = random_logits(VOCAB)
    expected = logits.clone()
    expected[50] += 100.0
    expected[int(logits.argmax())] -= 100.0
    params = SamplingParams(temperature=0.0, logit_bias={50: 100.0, int(logits.argmax()): -100})
    torch.testing.assert_close(scores(logits, params, choose), expected)
    assert tokens(sample(logits[None], request(params), choose=choose)) == [50]


def test_no_stop_token_before_min_tokens(choose: Choose) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, [4, 9, 20]] = torch.tensor([8.0, 7.0, 6.0])
    stops = frozenset({4, 9})
    for min_tokens, expected in ((0, 4), (len(ANSWER), 4), (len(ANSWER) + 1, 20)):
        params = SamplingParams(temperature=0.0, min_tokens=min_tokens, logit_bias={9: 0.5})
        one = request(params, stop_token_ids=stops)
        assert tokens(sample(logits, one, choose=choose)) == [expected]


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        (SamplingParams(top_k=3), 3),
        (SamplingParams(top_p=0.6), 2),  # 0.5 + 0.25
        (SamplingParams(top_p=0.5), 1),
        (SamplingParams(min_p=0.2), 3),  # 0.5, 0.25, 0.125 against 0.1
        (SamplingParams(top_k=2, top_p=0.9), 2),  # 2/3 + 1/3 after top-k
        (SamplingParams(temperature=0.5, top_p=0.9), 2),  # 3/4 + 3/16
        (SamplingParams(), 8),
    ],
)
def test_truncation_of_a_known_distribution(choose: Choose, params: SamplingParams, kept: int) -> None:
    logits = torch.log(torch.tensor([2.0**-n for n in range(1, 9)]))
    assert int(scores(logits, params).isfinite().sum()) == kept
    rows = [request(params.replace(seed=seed)) for seed in range(300)]
    drawn = set(tokens(sample(logits.expand(300, 8), *rows, choose=choose)))
    assert drawn <= set(range(kept))
    assert drawn >= set(range(min(kept, 5)))


@pytest.mark.parametrize("vocab_size", [VOCAB, 4096, 63])
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        *((0, 0.9, 0.0), (5, 1.0, 0.0), (100, 0.95, 0.0), (0, 0.999, 0.05), (1, 1.0, 0.0)),
        *((VOCAB + 5, 0.8, 0.01), (0, 1.0, 0.0), (0, 1.0, 0.1), (70, 1.0, 0.0), (0, 1e-6, 0.0)),
    ],
)
def test_draws_invert_the_plain_contract(
    choose: Choose, scale: float, top_k: int, top_p: float, min_p: float, vocab_size: int
) -> None:
    params = SamplingParams(top_k=top_k, top_p=top_p, min_p=min_p, temperature=0.7)
    logits = random_logits(vocab_size, scale=scale, seed=vocab_size)
    rows = random_rows(60, params)
    chosen = choose(logits.repeat(60, 1), [], rows)
    mass = plain_mass(logits, params)
    draws = torch.from_numpy(rows["uniform"].copy())
    expected = torch.searchsorted(mass, draws, right=True)
    # fp32 probabilities against fp64: a draw may fall on the other side of a boundary.
    margins = (mass - draws[:, None]).abs().amin(-1)
    assert bool(((torch.tensor(chosen) == expected) | (margins < 3e-6)).all())


@pytest.mark.parametrize("vocab_size", [4096, 100])
@pytest.mark.parametrize("top_k", [0, 2, 50])
@pytest.mark.parametrize(("best", "next_to_best"), [(77, 3), (77, 76), (64, 99), (99, 64)])
def test_a_token_is_alone_from_the_share_on_that_top_p_asks_for(
    choose: Choose, best: int, next_to_best: int, top_k: int, vocab_size: int
) -> None:
    """Its share of two tokens, the others having next to none, a little above top-p and a little below."""
    for share, expected in ((0.9002, {best}), (0.8998, {best, next_to_best})):
        logits = torch.full((vocab_size,), -30.0)
        logits[best], logits[next_to_best] = math.log(share), math.log(1 - share)
        rows = random_rows(400, SamplingParams(top_k=top_k, top_p=0.9, temperature=1.0))
        assert set(choose(logits.repeat(400, 1), [], rows)) == expected


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.5), (4, 0.6), (130, 0.9)])
def test_of_equal_scores_the_first_are_kept(choose: Choose, top_k: int, top_p: float) -> None:
    logits = torch.zeros(VOCAB)
    logits[200:] = 3.0
    logits[300] = 3.5
    params = SamplingParams(top_k=top_k, top_p=top_p, temperature=1.0)
    kept = set(keep_mask(logits, top_k=top_k, top_p=top_p, min_p=0.0).nonzero()[:, 0].tolist())
    rows = random_rows(3000, params)
    drawn = set(choose(logits.repeat(3000, 1), [], rows))
    assert drawn <= kept
    assert len(drawn) > 0.9 * len(kept)


def test_draws_near_the_ends_stay_within_the_kept_tokens(choose: Choose) -> None:
    logits = torch.full((1, 200), -torch.inf)
    logits[0, [1, 2]] = torch.tensor([1.0, 0.0])
    for params in (
        SamplingParams(),
        SamplingParams(top_k=2),
        SamplingParams(top_p=0.99),
        SamplingParams(min_p=0.01),
        SamplingParams(top_k=100),
        SamplingParams(temperature=1e-40),
    ):
        rows = random_rows(1, params)
        for uniform, expected in ((0.0, 1), (1 - 2.0**-53, 2 if params.temperature == 1 else 1)):
            rows["uniform"] = uniform
            assert choose(logits.clone(), [], rows) == [expected]


def test_frequencies_follow_the_distribution(choose: Choose) -> None:
    """Chi-square over 20 tokens: 19 degrees of freedom, 43.8 is passed once in a thousand times."""
    logits = random_logits(20, scale=1.0)
    probs = torch.softmax(logits, -1).double()
    one = request(SamplingParams(seed=3))
    sampler = Sampler([one], device=torch.device("cpu"), choose=choose)
    counts = torch.zeros(20, dtype=torch.float64)
    one.token_ids.clear()
    for _ in range(4000):
        [token_id] = sampler.sample(logits[None].clone())[0].token_ids
        counts[token_id] += 1
        one.token_ids.append(token_id)
    assert float(((counts - 4000 * probs) ** 2 / (4000 * probs)).sum()) < 43.8


def test_draws_are_those_of_their_positions_in_any_order() -> None:
    seeds = streams([3, 4, 5])
    draws = Draws(seeds)
    steady = [[step, 7 + step, 50] for step in range(3)]
    in_step = [[20 + step, 3 + step, 9 + step] for step in range(80)]
    for positions in [*in_step, *steady, *in_step, *reversed(in_step)]:
        assert draws.at(positions).tolist() == uniforms(seeds, np.array(positions)).tolist()


def test_uniform_numbers_are_uniform_across_seeds_and_positions() -> None:
    seeds, positions = np.meshgrid(np.arange(300), np.arange(300))
    numbers = uniforms(streams(seeds.ravel().tolist()), positions.ravel())
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 900) ** 2 / 900).sum() < 148  # 99 degrees of freedom: once in a thousand times
    grid = numbers.reshape(300, 300)
    for shifted in (np.roll(grid, 1, 0), np.roll(grid, 1, 1), np.roll(grid, (1, -1), (0, 1))):
        assert abs(np.corrcoef(grid.ravel(), shifted.ravel())[0, 1]) < 0.015


KINDS = [
    SamplingParams(temperature=0.0),
    SamplingParams(seed=1),
    SamplingParams(seed=1, top_p=0.7),
    SamplingParams(seed=1, top_k=300, temperature=2.0),
    SamplingParams(seed=1, min_p=0.1),
    SamplingParams(temperature=0.0, repetition_penalty=1.5),
    SamplingParams(seed=2, presence_penalty=1.0, logit_bias={3: 4.0}),
    SamplingParams(seed=2, top_p=0.999, temperature=5.0),
    SamplingParams(seed=2**63 - 1, frequency_penalty=1.0, repetition_penalty=1.1),
]


def test_rows_keep_their_own_parameters_in_a_mixed_batch(choose: Choose) -> None:
    """Each row of a mixed batch draws what it draws alone."""
    logits = random_logits(len(KINDS), VOCAB, scale=1.0)
    together = tokens(sample(logits, *[request(params) for params in KINDS], choose=choose))
    alone = [
        tokens(sample(logits[row : row + 1], request(params), choose=choose))[0]
        for row, params in enumerate(KINDS)
    ]
    assert together == alone


def test_sampling_again_gives_the_same(choose: Choose) -> None:
    """As after a preemption: the draw belongs to the place in the answer, not to the moment."""
    logits = random_logits(len(KINDS), VOCAB, scale=1.0)
    requests = [request(params) for params in KINDS]
    first = tokens(sample(logits, *requests, choose=choose))
    sample(random_logits(3, VOCAB), *requests[1:4], choose=choose)
    assert tokens(sample(logits, *requests, choose=choose)) == first
    moved = [request(params, token_ids=[*ANSWER, 1]) for params in KINDS]
    assert tokens(sample(logits, *moved, choose=choose)) != first


def test_a_request_without_a_seed_draws_one() -> None:
    logits = torch.zeros(8, VOCAB)
    assert len(set(tokens(sample(logits, *[request(SamplingParams()) for _ in range(8)])))) > 1


def test_drafts_count_as_far_as_they_are_the_own_choice(choose: Choose) -> None:
    """With right, half right and wrong drafts a request gets the tokens it gets one by one."""
    steps = random_logits(6, VOCAB, seed=9, scale=1.0)
    for params in KINDS:
        one = request(params)
        for step in steps[:4]:
            one.token_ids += tokens(sample(step[None], one, choose=choose))
        expected = one.token_ids[len(ANSWER) :]
        wrong = (expected[2] + 1) % VOCAB
        for drafts, num_tokens in (
            (expected[:3], 4),
            ([*expected[:2], wrong], 3),
            ([(expected[0] + 1) % VOCAB, *expected[1:3]], 1),
            ([], 1),
        ):
            drafting = request(params, draft_token_ids=drafts)
            other = request(SamplingParams(temperature=0.0))
            logits = torch.cat([steps[4:5], steps[: len(drafts) + 1], steps[5:6]])
            before, mine, after = sample(logits, other, drafting, other, choose=choose)
            assert mine.token_ids == expected[:num_tokens]
            assert tokens([before, after]) == steps[4:6].argmax(-1).tolist()


def test_drafts_bring_the_reports_of_their_rows() -> None:
    steps = random_logits(3, VOCAB)
    best = steps.argmax(-1).tolist()
    params = SamplingParams(temperature=0.0, logprobs=1)
    one = request(params, draft_token_ids=[best[0], 0], keep_logits=1, keep_scores=1)
    plain = request(SamplingParams(temperature=0.0, logprobs=0))
    first, second = sample(torch.cat([steps, steps[:1]]), one, plain)
    assert first.token_ids == best[:2]
    assert [report.token_id for report in first.logprobs] == best[:2]
    assert [list(kept) for kept in first.logits] == [[best[0]], [best[1]]]
    assert [list(kept) for kept in first.scores] == [[best[0]], [best[1]]]
    assert [len(report.top) for report in second.logprobs] == [0]


def test_logprobs_are_those_of_the_raw_model(choose: Choose) -> None:
    logits = random_logits(2, VOCAB)
    params = SamplingParams(temperature=0.0, logprobs=2, logit_bias={11: 100.0})
    first, second = sample(logits, request(params), request(SamplingParams(temperature=0.0)), choose=choose)
    expected = torch.log_softmax(logits[0], -1)
    assert not second.logprobs
    [logprob] = first.logprobs
    assert logprob.token_id == 11
    assert logprob.logprob == pytest.approx(float(expected[11]))
    best = expected.topk(2)
    assert [token_id for token_id, _ in logprob.top] == best.indices.tolist()
    assert [value for _, value in logprob.top] == pytest.approx(best.values.tolist())


def test_top_logits_are_raw_and_scores_are_processed(choose: Choose) -> None:
    logits = random_logits(1, VOCAB)
    best = int(logits.argmax())
    params = SamplingParams(temperature=0.0, logit_bias={best: -100.0})
    [result] = sample(logits, request(params, keep_logits=3, keep_scores=3), choose=choose)
    assert max(result.logits[0], key=result.logits[0].__getitem__) == best  # type: ignore[arg-type]
    assert best not in result.scores[0]
    assert len(result.scores[0]) == 3


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [17, VOCAB - 1])
def test_logits_that_are_not_numbers_are_an_error_of_their_row(
    choose: Choose, value: float, place: int
) -> None:
    logits = random_logits(4, VOCAB)
    logits[1:3, place] = value
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=0),
        SamplingParams(top_p=0.5, seed=0, logprobs=2),
        SamplingParams(top_k=3, seed=0),
    ]
    result = sample(logits, *[request(params) for params in kinds], choose=choose)
    assert [one.error is not None for one in result] == [False, True, True, False]
    assert not result[1].token_ids and not result[2].logprobs
