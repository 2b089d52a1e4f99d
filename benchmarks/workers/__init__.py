"""Processes that are timed: each holds one engine and answers one call at a time."""
