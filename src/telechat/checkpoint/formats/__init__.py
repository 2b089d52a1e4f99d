"""Checkpoint formats, one file each, over tensors that are not read until they are written elsewhere."""
