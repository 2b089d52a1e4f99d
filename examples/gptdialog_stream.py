"""Ask the original streaming route and print the answer as it comes.

python examples/gptdialog_stream.py "生抽与老抽的区别？" --url http://127.0.0.1:8070
"""

import argparse
import os

import httpx


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="生抽与老抽的区别？")
    parser.add_argument("--url", default="http://127.0.0.1:8070")
    args = parser.parse_args()
    # The last message is the question; roles alternate between user and bot.
    body = {
        "dialog": [
            {"role": "user", "content": "你是谁？"},
            {"role": "bot", "content": "我是小星。"},
            {"role": "user", "content": args.question},
        ],
        "do_sample": False,
        "max_length": 1024,
    }
    key = os.environ.get("TELECHAT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{args.url}/telechat/gptDialog/v2"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=None, trust_env=False) as answer:
        answer.raise_for_status()
        # iter_text joins the bytes of a character that two chunks share.
        for piece in answer.iter_text():
            print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
