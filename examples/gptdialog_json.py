"""Ask the service one question and print the answer: the original JSON route.

    python examples/gptdialog_json.py "生抽与老抽的区别？"

Needs nothing but Python. Start the service first: `telechat serve`.
"""

import argparse
import json
import os
import sys
import urllib.request

ROUTE = "/telechat/gptDialog/v4"


def main() -> int:
    """Send one dialog; returns the exit code."""
    parser = argparse.ArgumentParser(description="Ask the service one question.")
    parser.add_argument("question", nargs="?", default="生抽与老抽的区别？")
    parser.add_argument("--url", default="http://127.0.0.1:8070", help="address of the service")
    args = parser.parse_args()

    # Earlier turns come first: {"role": "user", ...}, {"role": "bot", ...}, and so on.
    body = {"dialog": [{"role": "user", "content": args.question}], "do_sample": False}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("TELECHAT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(args.url + ROUTE, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        answer = json.load(response)

    if "content" not in answer:
        print(f"error {answer['code']}: {answer['message']}", file=sys.stderr)
        return 1
    print(answer["content"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
