"""Runs in an environment that has llama-cpp-python, and needs nothing of ours.

Reads a request from stdin: the model, texts to split, a prompt to continue greedily. Writes ids to stdout and
logits to a file.
"""

from __future__ import annotations

import json
import sys

import numpy as np
from llama_cpp import Llama

request = json.load(sys.stdin)
model = Llama(
    model_path=request["model"], n_ctx=request["n_ctx"], n_threads=1, logits_all=True, verbose=False
)
answer = {"ids": [model.tokenize(t.encode(), add_bos=False, special=False) for t in request.get("texts", [])]}
prompt = request["prompt"]
model.eval(prompt)
np.save(request["logits"], np.array(model.scores[: len(prompt)], dtype=np.float32))
made = []
while len(made) < request["steps"]:
    made.append(int(np.argmax(model.scores[model.n_tokens - 1])))
    model.eval(made[-1:])
json.dump({**answer, "made": made}, sys.stdout)
