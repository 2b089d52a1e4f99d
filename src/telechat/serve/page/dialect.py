"""The Markdown that answers are read in: CommonMark, tables, strikethrough, formulas, coloured code.

Three things differ from CommonMark, on purpose. HTML is text and images are links. Reference definitions are
off: they let a later line change an earlier block, and a streamed block that was sent must not change. A
line end inside a paragraph is a line break, as people write in chats. Its output is not yet safe to insert;
`rendering` sanitises it.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from telechat.serve.page.formulas import add_formulas

MAX_HIGHLIGHT_CHARS = 60_000
"""Longer code is shown without colours; colouring costs about 1 ms per kilobyte."""

LINK_SCHEMES = ("http:", "https:", "mailto:")

_BARE_LINK = re.compile(r"https?://[^\s<>\"'`\u3000-\u303f\uff00-\uffef\u2018-\u201d]+")
_LINK_END = ".,;:!?*_~"
_TASK = re.compile(r"\[([ xX])\] ")
_ITEM_START = ["list_item_open", "paragraph_open"]
_FORMATTER = HtmlFormatter(nowrap=True)


def build_markdown() -> MarkdownIt:
    """The one parser; it keeps no state between texts and may be shared between threads."""
    md = MarkdownIt("commonmark", {"html": False, "breaks": True})
    md.enable(["table", "strikethrough"])
    md.disable(["reference", "html_block", "html_inline"])
    add_formulas(md)
    md.validateLink = _is_allowed_link  # type: ignore[method-assign]
    md.core.ruler.push("bare_links", _link_bare_addresses)
    md.core.ruler.push("task_items", _mark_task_items)
    md.core.ruler.push("chat_attributes", _adapt_tokens)
    md.add_render_rule("fence", _render_fence)
    md.add_render_rule("code_block", _render_code_block)
    md.add_render_rule("image", _render_image)
    md.add_render_rule("table_open", _render_table_open)
    md.add_render_rule("table_close", _render_table_close)
    return md


def _is_allowed_link(url: str) -> bool:
    return url.strip().lower().startswith(LINK_SCHEMES)


def _adapt_tokens(state: StateCore) -> None:
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            # The page owns h1 and h2; an answer's headings come below them.
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
        elif token.type in ("th_open", "td_open") and "style" in token.attrs:
            # The content security policy forbids style attributes.
            alignment = str(token.attrs.pop("style")).removeprefix("text-align:")
            token.attrs["class"] = f"align-{alignment}"


def _mark_task_items(state: StateCore) -> None:
    for index, token in enumerate(state.tokens[2:], start=2):
        opens_item = [before.type for before in state.tokens[index - 2 : index]] == _ITEM_START
        if token.type != "inline" or not opens_item or not token.children:
            continue
        first = token.children[0]
        matched = _TASK.match(first.content) if first.type == "text" else None
        if matched:
            first.content = ("☐ " if matched[1] == " " else "☑ ") + first.content[matched.end() :]


def _link_bare_addresses(state: StateCore) -> None:
    for block in state.tokens:
        if block.type != "inline" or not block.children or "://" not in block.content:
            continue
        children: list[Token] = []
        link_depth = 0
        for token in block.children:
            link_depth += {"link_open": 1, "link_close": -1}.get(token.type, 0)
            if token.type == "text" and link_depth == 0:
                children.extend(_split_links(token))
            else:
                children.append(token)
        block.children = children


def _split_links(token: Token) -> list[Token]:
    parts: list[Token] = []
    done = 0
    for match in _BARE_LINK.finditer(token.content):
        url = match[0].rstrip(_LINK_END)
        while url.endswith(")") and url.count(")") > url.count("("):
            url = url[:-1].rstrip(_LINK_END)
        if url.endswith("//"):
            continue
        parts.append(_text(token.content[done : match.start()], token.level))
        parts.append(Token("link_open", "a", 1, attrs={"href": url}, level=token.level))
        parts.append(_text(url, token.level + 1))
        parts.append(Token("link_close", "a", -1, level=token.level))
        done = match.start() + len(url)
    parts.append(_text(token.content[done:], token.level))
    return [part for part in parts if part.type != "text" or part.content]


def _text(content: str, level: int) -> Token:
    return Token("text", "", 0, content=content, level=level)


@lru_cache(maxsize=256)
def _lexer(name: str) -> Lexer | None:
    try:
        return get_lexer_by_name(name, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def _code(source: str, language: str) -> str:
    lexer = _lexer(language.lower()) if language and len(source) <= MAX_HIGHLIGHT_CHARS else None
    body = highlight(source, lexer, _FORMATTER) if lexer else html.escape(source, quote=False)
    label = f'<span class="code-lang">{html.escape(language)}</span>' if language else ""
    return (
        f'<div class="code"><div class="code-head">{label}</div>'
        f'<pre><code class="hl">{body}</code></pre></div>\n'
    )


def _render_fence(renderer: object, tokens: Sequence[Token], index: int, options: object, env: object) -> str:
    words = tokens[index].info.split(maxsplit=1)
    return _code(tokens[index].content, words[0][:40] if words else "")


def _render_code_block(
    renderer: object, tokens: Sequence[Token], index: int, options: object, env: object
) -> str:
    return _code(tokens[index].content, "")


def _render_image(renderer: object, tokens: Sequence[Token], index: int, options: object, env: object) -> str:
    """An image becomes a link: showing it would be a request to somebody else's host."""
    token = tokens[index]
    url = str(token.attrs.get("src", ""))
    return f'<a href="{html.escape(url)}">{html.escape(token.content or url)}</a>'


def _render_table_open(*_: object) -> str:
    return '<div class="table-wrap"><table>\n'


def _render_table_close(*_: object) -> str:
    return "</table></div>\n"
