"""The original README's lines under transformers: python examples/hf_quickstart.py [FOLDER]

Needs the extra `hf`. FOLDER holds a TeleChat model; without it the bundled demo model answers.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import telechat.hf  # noqa: F401 - from here on transformers knows TeleChat
from telechat.checkpoint import resolve_model


def main() -> None:
    folder = resolve_model(sys.argv[1] if len(sys.argv) > 1 else "demo")
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="auto", dtype=dtype)
    settings = GenerationConfig.from_pretrained(folder)

    question = "生抽与老抽的区别？"
    answer, history = model.chat(tokenizer, question, history=[], generation_config=settings)
    print(question, answer, sep="\n")

    question = "你是谁？"
    print(question)
    for piece, _ in model.chat(tokenizer, question, history, stream=True, generation_config=settings):
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
