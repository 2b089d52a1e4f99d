"""The process behind the chat page: `python -m telechat.cli.page_process`, started by `telechat deploy`.

The API's key comes in the environment (TELECHAT_API_KEY); on a public address browsers must give it too. Not
a verb: the page is of no use without an API.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def main() -> int:
    """Serve the page until told to stop."""
    parser = argparse.ArgumentParser(prog="telechat.cli.page_process", allow_abbrev=False)
    parser.add_argument("--api-url", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--feedback-folder", type=Path)
    args = parser.parse_args()

    import uvicorn

    from telechat.errors import TelechatError
    from telechat.serve.page.app import create_page_app
    from telechat.serve.page.security import ANY_HOST, LOOPBACK_HOSTS
    from telechat.serve.settings import is_loopback

    key = os.environ.get("TELECHAT_API_KEY")
    is_private = is_loopback(args.host)
    try:
        app = create_page_app(
            args.api_url,
            api_key=key,
            access_key=None if is_private else key,
            # Under which names a public page is reached, only its operator knows.
            allowed_hosts=LOOPBACK_HOSTS if is_private else (ANY_HOST,),
            feedback_folder=args.feedback_folder,
        )
    except TelechatError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=3)
    return 0


if __name__ == "__main__":
    sys.exit(main())
