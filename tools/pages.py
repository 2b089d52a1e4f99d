"""Write docs/commands.md from the commands' own help, and check links within the documentation.

`--check` writes nothing and fails when the page is out of date or a link leads nowhere.
"""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "commands.md"
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)]*))?\)|src=\"([^\"]+)\"")

INTRO = """# Commands

Written by `tools/pages.py` from `--help`; do not edit. Option names may be spelled with `-` or `_`.
Results go to stdout, progress and log to stderr. Exit codes: 0 done, 1 failed, 2 used wrongly, 130 when
interrupted.
"""


def commands_page() -> str:
    """The page: the overview, then each verb's help."""
    os.environ["COLUMNS"] = "100"
    os.environ["NO_COLOR"] = "1"
    from telechat.cli.main import overview
    from telechat.cli.parser import CommandParser
    from telechat.cli.verbs import VERBS

    parts = [INTRO, f"```text\n{overview()}\n```\n"]
    for verb in VERBS:
        module = import_module(verb.module)
        name = f"telechat {' '.join(verb.words)}"
        parser = CommandParser(name, summary=verb.summary, examples=module.EXAMPLES)
        module.add_arguments(parser)
        parts.append(f"## {name}\n\n```text\n{parser.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def broken_links() -> list[str]:
    """Relative links of the Markdown files that lead to nothing."""
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    problems = []
    for page in sorted(pages):
        for match in LINK.finditer(page.read_text(encoding="utf-8")):
            target, anchor = match[1] or match[3] or page.name, match[2]
            if re.match(r"[a-z]+:", target):
                continue
            place = page.parent / target
            if not place.exists():
                problems.append(f"{page.relative_to(ROOT)} links to {target}, which does not exist")
            elif anchor and place.suffix == ".md" and anchor not in anchors(place):
                problems.append(
                    f"{page.relative_to(ROOT)} links to {target}#{anchor}, which has no such heading"
                )
    return problems


def anchors(page: Path) -> set[str]:
    """What links within a page may name: its headings, as GitHub makes anchors of them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def main(words: list[str]) -> int:
    """Write or check; returns the exit code."""
    page = commands_page()
    problems = broken_links()
    if "--check" in words:
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
            problems.append("docs/commands.md is out of date; run `make format`")
    else:
        PAGE.write_text(page, encoding="utf-8")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
