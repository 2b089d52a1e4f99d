"""Quantise a TeleChat model to 4 bits by GPTQ, and talk to the result.

The calls of the original script, one for one:

    BaseQuantizeConfig(bits=4, group_size=128, desc_act=False)  QuantizeConfig(method="gptq", ...)
    TelechatGPTQForCausalLM.from_pretrained, .quantize(examples),
    .save_quantized(out)                                    telechat.quantize(model, out, config, texts=...)
    .from_quantized(out) and .chat                          telechat.LLM(out).chat

One sentence is enough to run; for a model you mean to use give 128 rows of real conversations or more
(`telechat quantize run --calib FILE`).

    python examples/quantize_4bit.py --model demo --out demo-4bit
"""

from __future__ import annotations

import argparse

import telechat
from telechat import QuantizeConfig

EXAMPLE = "<_user>生抽与老抽的区别？<_bot>生抽颜色浅，味道鲜；老抽颜色深，用来上色。<_end>"


def main() -> None:
    """Quantise, load, ask."""
    parser = argparse.ArgumentParser(description="Quantise a TeleChat model to 4 bits.")
    parser.add_argument("--model", default="demo", help="a model folder, a hub id, or demo")
    parser.add_argument("--out", required=True, help="the folder to make")
    parser.add_argument("--question", default="你是谁？")
    args = parser.parse_args()

    config = QuantizeConfig(method="gptq", bits=4, group_size=128, desc_act=False)
    telechat.quantize(args.model, args.out, config, texts=[EXAMPLE])

    llm = telechat.LLM(args.out)
    print(llm.chat([{"role": "user", "content": args.question}]).text)


if __name__ == "__main__":
    main()
