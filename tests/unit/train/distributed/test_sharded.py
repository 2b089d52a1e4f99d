"""What FSDP gathers: products' weights in the format of products, a mixture's router as it is stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed.train_cases import Case, make_engine, step_batches
from torch import Tensor

from telechat.train.distributed.engine import DistributedEngine


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_router_chooses_in_fp32_under_bf16() -> None:
    case = Case(name="offload", layouts=[], model={"experts": 4}, precision="bf16")
    engine = make_engine(case, {"offload": True})
    assert isinstance(engine, DistributedEngine)
    mixture: Any = engine.stages[0].model.transformer.blocks[0].mlp
    seen: dict[str, torch.dtype] = {}

    def watch(name: str, module: Any, weight: str) -> None:
        forward = module.forward

        def watched(*args: Any, **named: Any) -> Tensor:
            seen[name] = module.get_parameter(weight).dtype
            out: Tensor = forward(*args, **named)
            return out

        module.forward = watched

    watch("router", mixture.router, "weight")
    watch("expert", mixture.local_experts["0"], "up_proj.weight")
    engine.backward(step_batches(0, packed=False))
    assert seen == {"router": torch.float32, "expert": torch.bfloat16}
