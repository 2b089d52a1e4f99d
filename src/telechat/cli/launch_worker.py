"""One process of `telechat launch`: the command line, with its stderr in the same log as the rest.

A program: `python -m telechat.cli.launch_worker VERB ...`, started by torch's elastic agent.
"""

from __future__ import annotations

import os
import sys

from telechat.cli.main import main

if __name__ == "__main__":
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())
    sys.exit(main(sys.argv[1:]))
