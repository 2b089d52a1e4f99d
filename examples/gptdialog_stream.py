"""Ask the service one question and print the answer as it is written: the original stream route.

    python examples/gptdialog_stream.py "生抽与老抽的区别？"

Needs nothing but Python. Start the service first: `telechat serve`.
"""

import argparse
import codecs
import http.client
import json
import os
import sys
import urllib.error
import urllib.request

ROUTE = "/telechat/gptDialog/v2"


def main() -> int:
    """Send one dialog; returns the exit code."""
    parser = argparse.ArgumentParser(description="Ask the service one question and watch the answer grow.")
    parser.add_argument("question", nargs="?", default="生抽与老抽的区别？")
    parser.add_argument("--url", default="http://127.0.0.1:8070", help="address of the service")
    args = parser.parse_args()

    # Earlier turns come first: {"role": "user", ...}, {"role": "bot", ...}, and so on.
    body = {"dialog": [{"role": "user", "content": args.question}], "do_sample": False}
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("TELECHAT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    try:
        request = urllib.request.Request(args.url + ROUTE, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request) as response:
            if not show(response):
                return 1
    except (OSError, ValueError) as error:
        print(f"no answer from {args.url}: {reason(error)}", file=sys.stderr)
        return 1
    print()
    return 0


def show(response: http.client.HTTPResponse) -> bool:
    """Print the answer as it comes; False when the request was refused."""
    # An answer is plain text; JSON means that the request was refused.
    if response.headers.get_content_type() == "application/json":
        error = json.load(response)
        print(f"error {error['code']}: {error['message']}", file=sys.stderr)
        return False
    # A piece may end in the middle of a character, so decode as it comes and never piece by piece.
    decoder = codecs.getincrementaldecoder("utf-8")()
    while piece := response.read1():
        print(decoder.decode(piece), end="", flush=True)
    return True


def reason(error: Exception) -> str:
    """Why there is no answer, in a line: the service is not running, or it has refused the request."""
    if isinstance(error, urllib.error.HTTPError):
        try:
            return f"{error.code} {json.load(error)['error']['message']}"
        except (ValueError, KeyError, TypeError):
            return f"{error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"{error.reason}. Is it running? Start it with: telechat serve"
    return str(error)


if __name__ == "__main__":
    raise SystemExit(main())
