"""Each sampling option does what it says; the fast paths agree with the plain contract."""

from __future__ import annotations

import pytest
import torch
from tests.unit.engine.engine_samples import ByteTokenizer
from torch import Tensor

from telechat.engine import SamplingParams
from telechat.engine.history import History
from telechat.engine.request import Request
from telechat.engine.sampler import Sampled, Sampler
from telechat.engine.text import TextStream
from telechat.engine.truncation import keep_mask, pick_candidate, pick_from_all

VOCAB = 400
PROMPT = [5, 6, 6]
ANSWER = [7, 8, 8, 8]


def request(params: SamplingParams, **settings: object) -> Request:
    return Request(
        prompt_token_ids=list(PROMPT),
        params=params,
        max_new_tokens=100,
        stop_token_ids=frozenset(),
        text_stream=TextStream(ByteTokenizer().stream_decoder()),
        token_ids=list(ANSWER),
        **settings,  # type: ignore[arg-type]
    )


def history(num_rows: int) -> History:
    """Every row holds PROMPT + ANSWER; the columns after it hold id 9, which must count for nothing."""
    ids = torch.tensor([PROMPT + ANSWER + [9, 9]] * num_rows)
    return History(ids, torch.full((num_rows,), len(PROMPT + ANSWER)))


def sample(logits: Tensor, *requests: Request) -> Sampled:
    sampler = Sampler(requests, device=logits.device)
    return sampler.sample(logits.clone(), history(len(requests)))


def scores(logits: Tensor, params: SamplingParams) -> Tensor:
    """The processed scores that the sampler reports for one request."""
    kept = sample(logits[None], request(params, keep_scores="all")).scores[0]
    assert isinstance(kept, Tensor)
    return kept


def random_logits(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def test_temperature_zero_takes_the_largest() -> None:
    logits = random_logits(3, VOCAB)
    chosen = sample(logits, *[request(SamplingParams(temperature=0.0)) for _ in range(3)])
    assert chosen.token_ids == logits.argmax(-1).tolist()


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = random_logits(VOCAB)
    expected = logits.clone()
    for token_id in {*PROMPT, *ANSWER}:
        expected[token_id] = logits[token_id] / 1.3 if logits[token_id] > 0 else logits[token_id] * 1.3
    torch.testing.assert_close(
        scores(logits, SamplingParams(temperature=0.0, repetition_penalty=1.3)), expected
    )


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    logits = random_logits(VOCAB)
    expected = logits.clone()
    expected[7] -= 0.5 + 1 * 0.25
    expected[8] -= 0.5 + 3 * 0.25
    params = SamplingParams(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25)
    torch.testing.assert_close(scores(logits, params), expected)


def test_logit_bias() -> None:
    logits = random_logits(VOCAB)
    expected = logits.clone()
    expected[50] += 100.0
    expected[int(logits.argmax())] -= 100.0
    params = SamplingParams(temperature=0.0, logit_bias={50: 100.0, int(logits.argmax()): -100})
    torch.testing.assert_close(scores(logits, params), expected)
    assert sample(logits[None], request(params)).token_ids == [50]


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
def test_truncation_of_a_known_distribution(params: SamplingParams, kept: int) -> None:
    logits = torch.log(torch.tensor([2.0**-n for n in range(1, 9)]))
    assert int(scores(logits, params).isfinite().sum()) == kept
    drawn = {sample(logits[None], request(params.replace(seed=seed))).token_ids[0] for seed in range(200)}
    assert drawn <= set(range(kept))
    assert drawn >= set(range(min(kept, 5)))


@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [(0, 0.9, 0.0), (5, 1.0, 0.0), (100, 0.95, 0.0), (0, 0.999, 0.05), (1, 1.0, 0.0), (VOCAB + 5, 0.8, 0.01)],
)
def test_ranked_draws_invert_the_plain_contract(scale: float, top_k: int, top_p: float, min_p: float) -> None:
    """For a grid of draws, `pick_candidate` must give what the whole sorted distribution gives."""
    logits = random_logits(VOCAB, scale=scale)
    kept = keep_mask(logits, top_k=top_k, top_p=top_p, min_p=min_p)
    mass = torch.softmax(torch.where(kept, logits, -torch.inf).double(), -1).cumsum(-1)
    draws = torch.linspace(0, 0.9999, 301, dtype=torch.float64)[:, None]
    expected = torch.searchsorted(mass, draws[:, 0], right=True)
    rows = len(draws)
    chosen = pick_candidate(
        logits.expand(rows, VOCAB),
        [top_k] * rows,
        torch.full((rows, 1), top_p),
        torch.full((rows, 1), min_p),
        draws,
    )
    assert bool(kept[chosen].all())
    # fp32 probabilities against fp64: a draw may fall on the other side of a boundary.
    assert (chosen != expected).float().mean() < 0.01


def test_draws_near_one_stay_within_the_kept_tokens() -> None:
    logits = torch.tensor([[1.0, 0.0, -torch.inf, -torch.inf]])
    almost_one = torch.tensor([[1 - 2.0**-53]], dtype=torch.float64)
    zeros = torch.zeros(1, 1)
    assert pick_from_all(logits, zeros, almost_one).tolist() == [1]
    assert pick_candidate(logits, [2], zeros + 1, zeros, almost_one).tolist() == [1]


def test_frequencies_follow_the_distribution() -> None:
    probs = torch.tensor([0.6, 0.3, 0.1])
    counts = torch.zeros(3)
    one = request(SamplingParams(seed=3))
    sampler = Sampler([one], device=torch.device("cpu"))
    for _ in range(3000):
        counts[sampler.sample(probs.log()[None], history(1)).token_ids[0]] += 1
    torch.testing.assert_close(counts / 3000, probs, atol=0.03, rtol=0)


def test_rows_keep_their_own_parameters_in_a_mixed_batch() -> None:
    """Each row of a mixed batch draws what it draws alone."""
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(seed=1),
        SamplingParams(seed=1, top_p=0.7),
        SamplingParams(seed=1, top_k=300, temperature=2.0),
        SamplingParams(seed=1, min_p=0.1),
        SamplingParams(temperature=0.0, repetition_penalty=1.5),
        SamplingParams(seed=2, presence_penalty=1.0, logit_bias={3: 4.0}),
        SamplingParams(seed=2, top_p=0.999, temperature=5.0),
    ]
    logits = random_logits(len(kinds), VOCAB, scale=1.0)
    together = sample(logits, *[request(params) for params in kinds]).token_ids
    alone = [sample(logits[row : row + 1], request(params)).token_ids[0] for row, params in enumerate(kinds)]
    assert together == alone


def test_logprobs_are_those_of_the_raw_model() -> None:
    logits = random_logits(2, VOCAB)
    params = SamplingParams(temperature=0.0, logprobs=2, logit_bias={11: 100.0})
    result = sample(logits, request(params), request(SamplingParams(temperature=0.0)))
    expected = torch.log_softmax(logits[0], -1)
    assert list(result.logprobs) == [0]
    logprob = result.logprobs[0]
    assert logprob.token_id == 11
    assert logprob.logprob == pytest.approx(float(expected[11]))
    best = expected.topk(2)
    assert [token_id for token_id, _ in logprob.top] == best.indices.tolist()
    assert [value for _, value in logprob.top] == pytest.approx(best.values.tolist())


def test_top_logits_are_raw_and_scores_are_processed() -> None:
    logits = random_logits(1, VOCAB)
    best = int(logits.argmax())
    params = SamplingParams(temperature=0.0, logit_bias={best: -100.0})
    result = sample(logits, request(params, keep_logits=3, keep_scores=3))
    assert max(result.logits[0], key=result.logits[0].__getitem__) == best  # type: ignore[arg-type]
    assert best not in result.scores[0]
    assert len(result.scores[0]) == 3


def test_logits_that_are_not_numbers_are_told_by_row() -> None:
    logits = random_logits(3, VOCAB)
    logits[1, 17] = torch.nan
    kinds = [SamplingParams(temperature=0.0), SamplingParams(seed=0), SamplingParams(top_p=0.5, seed=0)]
    result = sample(logits, *[request(params) for params in kinds])
    assert result.broken_rows == [1]
