"""Rows of numbers as the blocks of 32 that llama.cpp calls Q8_0 and Q4_0, and back.

Each block has one fp16 scale. Knows no files.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32


def to_q8_0(rows: Tensor) -> Tensor:
    """[N, K] as uint8 [N, K / 32 * 34]: scale = largest magnitude / 127, then 32 signed bytes."""
    blocks = _blocks(rows.float(), BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    quotients = blocks * _inverse(scale)
    # Halves are rounded away from zero, as in C.
    rounded = torch.trunc(quotients + torch.copysign(torch.tensor(0.5), quotients)).to(torch.int8)
    return torch.cat([_scale_bytes(scale), rounded.view(torch.uint8)], -1).flatten(-2)


def from_q8_0(rows: Tensor) -> Tensor:
    """The numbers, fp32, of bytes that `to_q8_0` made."""
    blocks = _blocks(rows, BLOCK + 2)
    codes = blocks[..., 2:].contiguous().view(torch.int8).float()
    return (codes * _scales(blocks)).flatten(-2)


def to_q4_0(rows: Tensor) -> Tensor:
    """[N, K] as uint8 [N, K / 32 * 18]: scale = the number largest in magnitude / -8, then 32 half bytes, of
    which the first 16 are the low halves."""
    blocks = _blocks(rows.float(), BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -8
    codes = (blocks * _inverse(scale) + 8.5).to(torch.int8).clamp(max=15).view(torch.uint8)
    low, high = codes.chunk(2, -1)
    return torch.cat([_scale_bytes(scale), low | (high << 4)], -1).flatten(-2)


def from_q4_0(rows: Tensor) -> Tensor:
    """The numbers, fp32, of bytes that `to_q4_0` made."""
    blocks = _blocks(rows, BLOCK // 2 + 2)
    codes = torch.cat([blocks[..., 2:] & 15, blocks[..., 2:] >> 4], -1).float() - 8
    return (codes * _scales(blocks)).flatten(-2)


def _blocks(rows: Tensor, size: int) -> Tensor:
    """[N, K] as [N, K / size, size]."""
    return rows.reshape(len(rows), -1, size)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)


def _scale_bytes(scale: Tensor) -> Tensor:
    return scale.to(torch.float16).view(torch.uint8)


def _scales(blocks: Tensor) -> Tensor:
    return blocks[..., :2].contiguous().view(torch.float16).float()
