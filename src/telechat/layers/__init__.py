"""Modules that make up a decoder block, over the operations of `telechat.ops`."""
