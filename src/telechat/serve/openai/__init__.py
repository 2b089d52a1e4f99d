"""The OpenAI-compatible surface: request fields, answers, streams and the model list."""
