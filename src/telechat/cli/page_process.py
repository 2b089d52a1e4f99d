"""The process behind the chat page: `python -m telechat.cli.page_process`, started by `telechat deploy`.

The API's key comes in the environment (TELECHAT_API_KEY); on a public address browsers must give it too. Not
a verb: the page is of no use without an API.
"""

from __future__ import annotations

import argparse
import os
import sys


def main() -> int:
    """Serve the page until told to stop."""
    parser = argparse.ArgumentParser(prog="telechat.cli.page_process", allow_abbrev=False)
    parser.add_argument("--api-url", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    args = parser.parse_args()

    import uvicorn

    from telechat.serve.page.app import create_page_app
    from telechat.serve.settings import is_loopback

    key = os.environ.get("TELECHAT_API_KEY")
    if is_loopback(args.host):
        app = create_page_app(args.api_url, api_key=key)
    else:
        # Under which names a public page is reached, only its operator knows.
        app = create_page_app(args.api_url, api_key=key, access_key=key, allowed_hosts=("*",))
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
