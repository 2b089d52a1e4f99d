"""`python -m telechat`: the same as the `telechat` command."""

from telechat.cli.main import main

raise SystemExit(main())
