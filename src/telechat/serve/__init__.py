"""The HTTP service: OpenAI-compatible routes, the original gptDialog routes, keys, limits and shutdown.

Nothing is imported here: `telechat.serve.app` brings FastAPI, `telechat.serve.server` also an engine, and the
chat page (`telechat.serve.page`) needs neither.
"""
