"""Operations that run on CUDA devices only. Outside this package no code names that device."""
