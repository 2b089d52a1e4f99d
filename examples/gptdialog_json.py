"""Ask the original JSON route and print the answer.

python examples/gptdialog_json.py "生抽与老抽的区别？" --url http://127.0.0.1:8070
"""

import argparse
import os
import sys

import httpx


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", nargs="?", default="生抽与老抽的区别？")
    parser.add_argument("--url", default="http://127.0.0.1:8070")
    args = parser.parse_args()
    body = {"dialog": [{"role": "user", "content": args.question}], "do_sample": False, "max_length": 1024}
    key = os.environ.get("TELECHAT_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    url = f"{args.url}/telechat/gptDialog/v4"
    answer = httpx.post(url, json=body, headers=headers, timeout=None, trust_env=False)
    answer.raise_for_status()
    result = answer.json()
    if "code" in result:
        # The original service reports errors with HTTP 200.
        print(f"error {result['code']}: {result['message']}", file=sys.stderr)
        return 1
    print(result["content"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
