"""Take the picture of the chat page that the READMEs show: the demo model's answer and its prompt."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PICTURE = ROOT / "docs" / "images" / "page.png"
QUESTION = "生抽与老抽的区别？"


def main() -> int:
    """Deploy, ask, take the picture."""
    from tests.e2e.browser import act, ask, fresh_page, launched_browser
    from tests.e2e.deployments import deployment

    command = [sys.executable, "-m", "telechat", "deploy", "--model-path", "demo"]
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    with (
        deployment(command, cwd=ROOT) as running,
        launched_browser() as browser,
        fresh_page(browser, running.page_url, width=1280) as page,
    ):
        ask(page, QUESTION)
        act(page, "tokens")
        page.wait_for_selector("#token-list .token")
        page.screenshot(path=str(PICTURE))
    print(PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
