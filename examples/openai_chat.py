"""Talk to the API with OpenAI's own client, streaming (`pip install openai`).

python examples/openai_chat.py "生抽与老抽的区别？" --url http://127.0.0.1:8070
"""

import argparse
import os

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="生抽与老抽的区别？")
    parser.add_argument("--url", default="http://127.0.0.1:8070")
    args = parser.parse_args()
    client = OpenAI(base_url=f"{args.url}/v1", api_key=os.environ.get("TELECHAT_API_KEY", "none"))
    model = client.models.list().data[0].id
    messages = [{"role": "user", "content": args.question}]
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main()
