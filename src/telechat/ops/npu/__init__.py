"""Operations that run on Ascend devices only, through torch_npu. Outside this package no code names it."""
