"""Evaluations of a model. They get the answering function handed in and know nothing of engines."""
