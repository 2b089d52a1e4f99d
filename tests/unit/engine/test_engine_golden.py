"""The engine generates what the official code generated, in a batch with strangers."""

from __future__ import annotations

import pytest
from tests.golden.recorded import VARIANTS, has, ids, recorded_model
from tests.unit.engine.engine_samples import byte_tokenizer, random_prompts

from telechat.engine import LLM, SamplingParams
from telechat.models import RopeMode

CASES: list[tuple[str, RopeMode]] = [
    ("greedy", "static"),
    ("cross_nocache", "consistent"),
    ("cross_cached", "official"),
]
PROMPTS = {"greedy": "greedy_prompt", "cross_nocache": "cross_prompt", "cross_cached": "cross_cached_prompt"}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("case", "rope_mode"), CASES, ids=[name for name, _ in CASES])
def test_greedy_answers_of_the_official_code(variant: str, case: str, rope_mode: RopeMode) -> None:
    if not has(variant, f"{case}_ids"):
        pytest.skip(f"no {case} recording of this variant")
    model = recorded_model(variant, rope_mode=rope_mode)
    prompt, expected = ids(variant, PROMPTS[case])[0].tolist(), ids(variant, f"{case}_ids").tolist()
    llm = LLM(model, byte_tokenizer(), max_model_len=256 if rope_mode != "static" else None)
    params = SamplingParams(temperature=0.0, max_tokens=len(expected), ignore_eos=True)
    short = [prompt[:20] for prompt in random_prompts(4, seed=9)]
    outputs = llm.generate([*short[:2], prompt, *short[2:]], params)
    assert outputs[2].outputs[0].token_ids == expected
