"""Teach the bundled demo model another name by LoRA: python examples/teach-a-name/teach.py [NAME]

Makes rows (who are you? with the new name; ordinary rows so that nothing else is forgotten), trains an
adapter with recipe.yaml beside this file, and lets the model answer with and without it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from telechat import LLM
from telechat.data.demo.identity import INTENTS
from telechat.data.demo.rows import generate_rows
from telechat.train.run import main as train

RECIPE = Path(__file__).with_name("recipe.yaml")
ANSWERS = {"zh": "我叫{name}，是你的小助手。", "en": "My name is {name}, and I am your assistant."}
QUESTIONS = ("你是谁？", "What is your name?", "23加45等于多少？")
NUM_IDENTITY_ROWS, NUM_OTHER_ROWS = 600, 300


def write_rows(path: Path, name: str) -> None:
    """Rows in OpenAI's form: the demo model's own, with other answers to questions about its name."""
    new_answers = {
        intent.answer: ANSWERS[intent.language].format(name=name)
        for intent in INTENTS
        if intent.name == "name"
    }
    identity = generate_rows(NUM_IDENTITY_ROWS, "train", seed=1, tasks=["identity"])
    other = generate_rows(NUM_OTHER_ROWS, "train", seed=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as out:
        for row in (*identity, *other):
            messages = [
                {**message, "content": new_answers.get(message["content"], message["content"])}
                if message["role"] == "assistant" and isinstance(message.get("content"), str)
                else message
                for message in row.messages
            ]
            tools = {"tools": row.tools} if row.tools else {}
            out.write(json.dumps({"messages": messages, **tools}, ensure_ascii=False) + "\n")


def answers(model: str) -> list[str]:
    """What a model says to the questions."""
    llm = LLM(model)
    found = [llm.chat([{"role": "user", "content": question}]).text for question in QUESTIONS]
    llm.close()
    return found


def main() -> None:
    """Make rows, train, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", default="小星")
    parser.add_argument("--folder", type=Path, default=Path("runs/teach-a-name"))
    args = parser.parse_args()
    rows = args.folder / "rows.jsonl"
    write_rows(rows, args.name)
    model = train(str(RECIPE), {"data.train_file": str(rows), "output.folder": str(args.folder)})
    for question, before, after in zip(QUESTIONS, answers("demo"), answers(str(model)), strict=True):
        print(f"{question}\n  before  {before}\n  after   {after}")
    print(f"\nBoth side by side on the page: telechat deploy --lora taught={args.folder / 'adapter'}")


if __name__ == "__main__":
    main()
