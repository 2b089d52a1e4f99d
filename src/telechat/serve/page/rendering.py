"""From an answer's Markdown to HTML that is safe to insert, at once or while the answer is still coming.

A text is a row of top-level blocks, each rendered and sanitised by itself. While a text grows, every block
but the last one of its complete lines is settled: nothing that follows can change it. The tests hold this as
a property: settled blocks plus tail equal the one-shot rendering, whatever the cuts.
Knows nothing of HTTP, of the API's events, or of time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from pygments.token import STANDARD_TYPES

from telechat.serve.page.dialect import LINK_SCHEMES, build_markdown

_TEXT_TAGS = {
    *("p", "br", "hr", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "li", "strong", "em", "s", "a"),
    *("code", "pre", "div", "span", "table", "thead", "tbody", "tr", "th", "td"),
}
_MATH_TAGS = {
    *("math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "ms", "mfrac", "msqrt", "mroot", "mstyle"),
    *("msub", "msup", "msubsup", "munder", "mover", "munderover", "mmultiscripts", "mprescripts", "none"),
    *("mtable", "mtr", "mtd", "mpadded", "mphantom", "menclose", "merror"),
}
_MATH_ATTRIBUTES = {
    *("display", "displaystyle", "scriptlevel", "mathvariant", "mathsize", "mathcolor", "linethickness"),
    *("stretchy", "symmetric", "fence", "separator", "form", "lspace", "rspace", "minsize", "maxsize"),
    *("largeop", "movablelimits", "accent", "accentunder", "width", "height", "depth", "voffset"),
    *("columnalign", "rowspacing", "columnspacing", "notation"),
}

_UNUSABLE = re.compile("[\0\ud800-\udfff]")
"""NUL, and halves of surrogate pairs, which no encoder takes."""


@lru_cache(maxsize=1)
def _markdown() -> MarkdownIt:
    return build_markdown()


@lru_cache(maxsize=1)
def _cleaner() -> nh3.Cleaner:
    """The allow-list; nothing reaches a browser as HTML without passing it."""
    attributes: dict[str, set[str]] = {tag: set(_MATH_ATTRIBUTES) for tag in _MATH_TAGS}
    attributes |= {"a": {"href"}, "ol": {"start"}}
    alignments = {"align-left", "align-right", "align-center"}
    return nh3.Cleaner(
        tags=_TEXT_TAGS | _MATH_TAGS,
        attributes=attributes,
        allowed_classes={
            "span": {"code-lang", *filter(None, STANDARD_TYPES.values())},
            "div": {"code", "code-head", "table-wrap", "formula"},
            "code": {"hl", "formula-source"},
            "pre": {"formula-source"},
            "th": alignments,
            "td": alignments,
        },
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener noreferrer",
        url_schemes={scheme.rstrip(":") for scheme in LINK_SCHEMES},
        url_relative="deny",
    )


def render_blocks(text: str) -> list[str]:
    """Render a whole text.

    Args:
        text: Markdown, any characters; HTML in it is shown as text.

    Returns:
        One sanitised HTML string per top-level block, in order.
    """
    return _render(_normalized(text))


@dataclass(frozen=True)
class RenderUpdate:
    """What changed since the update before.

    `settled` are HTML blocks to append for good; `tail` replaces the HTML after them.
    """

    settled: list[str]
    tail: str


class StreamRenderer:
    """Renders one growing text; `push` as often as you like, `update` when there is time to show it."""

    def __init__(self) -> None:
        self._pending = ""  # normalised source after the settled blocks
        self._held = ""  # a final "\r", which may be half of "\r\n"
        self._has_new_line = False

    def push(self, piece: str) -> None:
        """Append `piece` to the text; cheap."""
        piece = self._held + piece
        self._held = "\r" if piece.endswith("\r") else ""
        piece = _normalized(piece[: len(piece) - len(self._held)])
        self._pending += piece
        self._has_new_line = self._has_new_line or "\n" in piece

    def update(self) -> RenderUpdate:
        """Settle what can be settled and render the rest."""
        settled = self._settle() if self._has_new_line else []
        self._has_new_line = False
        return RenderUpdate(settled, "".join(_render(self._pending + ("\n" if self._held else ""))))

    def finish(self) -> RenderUpdate:
        """The last update: everything settles and the tail is empty."""
        rest = self._pending + ("\n" if self._held else "")
        self._pending = self._held = ""
        return RenderUpdate(_render(rest), "")

    def _settle(self) -> list[str]:
        complete = self._pending[: self._pending.rfind("\n") + 1]
        starts = _block_starts(complete)
        if len(starts) < 2:
            return []
        lines = complete.split("\n")
        cut = sum(len(line) + 1 for line in lines[: starts[-1]])
        done, self._pending = self._pending[:cut], self._pending[cut:]
        return _render(done)


def _normalized(text: str) -> str:
    return _UNUSABLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def _block_starts(source: str) -> list[int]:
    """First line of every top-level block of `source`; the block structure only, no inline parsing."""
    md = _markdown()
    tokens: list[Token] = []
    md.block.parse(source, md, {}, tokens)
    return [token.map[0] for token in tokens if token.level == 0 and token.nesting >= 0 and token.map]


def _render(source: str) -> list[str]:
    md = _markdown()
    env: dict[str, object] = {}
    blocks: list[str] = []
    group: list[Token] = []
    for token in md.parse(source, env):
        group.append(token)
        if token.level == 0 and token.nesting <= 0:
            blocks.append(_cleaner().clean(md.renderer.render(group, md.options, env)))
            group = []
    return blocks
