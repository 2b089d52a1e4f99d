r"""Formulas in answers: Markdown rules for `$…$`, `$$…$$`, `\(…\)` and `\[…\]`, and their MathML.

The block rule decides from lines already complete: a block opened by `$$` or `\[` runs to its closer, to a
blank line or to the end of its container, and never turns back into something else. That is what allows
finished blocks of a streamed answer to be sent once. Knows nothing of streams, pages or sanitising.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Sequence
from xml.etree import ElementTree

from latex2mathml import converter
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

logger = logging.getLogger(__name__)

MAX_FORMULA_CHARS = 4000
"""Longer ones are shown as source: the converter recurses, and nobody reads them on a phone."""

_BLOCK_DELIMITERS = (("$$", "$$"), (r"\[", r"\]"))
_INLINE_DELIMITERS = (("$$", "$$", True), (r"\(", r"\)", False), (r"\[", r"\]", True))

_FORMULA_SIGNS = frozenset("\\^_=")

_NUM_CHILDREN = {
    "mfrac": 2,
    "mroot": 2,
    "msub": 2,
    "msup": 2,
    "munder": 2,
    "mover": 2,
    "msubsup": 3,
    "munderover": 3,
}


def add_formulas(md: MarkdownIt) -> None:
    """Add the block rule, the inline rules and their renderers to `md`."""
    md.block.ruler.before("fence", "formula_block", _block_rule, {"alt": ["paragraph", "blockquote", "list"]})
    md.inline.ruler.before("escape", "formula_inline", _inline_rule)
    md.add_render_rule("formula_block", _render_block)
    md.add_render_rule("formula_inline", _render_inline)


def formula_mathml(latex: str, *, display: bool) -> str | None:
    """MathML of one formula, or None when it does not parse.

    Args:
        latex: the formula without its delimiters.
        display: True for a formula on its own line.

    Returns:
        A well-formed `<math>` element whose text is escaped. The caller still sanitises it: the converter
        lets attributes such as `href` through.
    """
    if not latex.strip() or len(latex) > MAX_FORMULA_CHARS:
        return None
    try:
        element = converter.convert_to_element(latex.strip(), display="block" if display else "inline")
    except Exception as error:  # noqa: BLE001 - a foreign parser fed with arbitrary text; it fails in many types
        logger.debug("formula %r does not parse: %s", latex, type(error).__name__)
        return None
    for node in element.iter():
        # The converter writes character references into the text and leaves `<` of `\text{}` alone; decoding
        # here and letting ElementTree escape gives text that is only text.
        node.text = html.unescape(node.text) if node.text else node.text
        expected = _NUM_CHILDREN.get(node.tag)
        if expected is not None and len(node) != expected:
            return None
        if node.tag == "mi" and (node.text or "").startswith("\\"):
            return None
    return ElementTree.tostring(element, encoding="unicode")


def _block_rule(state: StateBlock, start_line: int, end_line: int, silent: bool) -> bool:
    if state.is_code_block(start_line):
        return False
    first = state.src[state.bMarks[start_line] + state.tShift[start_line] : state.eMarks[start_line]]
    delimiters = next((pair for pair in _BLOCK_DELIMITERS if first.startswith(pair[0])), None)
    if delimiters is None:
        return False
    opener, closer = delimiters
    rest = first[len(opener) :].rstrip()
    closed_at = rest.find(closer)
    if closed_at >= 0 and closed_at + len(closer) != len(rest):
        return False  # text follows on the same line: the inline rule takes it
    if silent:
        return True

    is_closed = closed_at >= 0
    next_line = start_line + 1
    while not is_closed and next_line < end_line:
        if state.isEmpty(next_line) or state.sCount[next_line] < state.blkIndent:
            break
        line = state.src[state.bMarks[next_line] : state.eMarks[next_line]]
        is_closed = line.rstrip().endswith(closer)
        next_line += 1

    source = state.getLines(start_line, next_line, state.blkIndent, False).strip()
    token = state.push("formula_block", "math", 0)
    token.map = [start_line, next_line]
    token.content = source[len(opener) : -len(closer)] if is_closed else ""
    token.meta = {"source": source}
    state.line = next_line
    return True


def _inline_rule(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    opener, closer, display = next(
        (row for row in _INLINE_DELIMITERS if state.src.startswith(row[0], state.pos)), ("$", "$", False)
    )
    if not state.src.startswith(opener, state.pos):
        return False
    start = state.pos + len(opener)
    limit = min(state.posMax, start + MAX_FORMULA_CHARS)
    end = _closing_dollar(state.src, start, limit) if opener == "$" else state.src.find(closer, start, limit)
    if end <= start:
        return False
    if not silent:
        token = state.push("formula_inline", "math", 0)
        token.content = state.src[start:end]
        token.meta = {"source": state.src[state.pos : end + len(closer)], "display": display}
    state.pos = end + len(closer)
    return True


def _closing_dollar(source: str, start: int, limit: int) -> int:
    """Position of the `$` closing a formula whose text begins at `start`, or -1.

    A `$` opens before a non-space and closes after a non-space, not before a digit; it opens before a digit
    only when what follows is plainly a formula ("$2x + 1 = 7$"), so that "$5 and $10" stays money. The first
    unescaped `$` decides: a formula cannot hold one.
    """
    if start >= limit or source[start].isspace():
        return -1
    position = start
    while position < limit and source[position] != "$":
        position += 2 if source[position] == "\\" else 1
    if position >= limit or source[position - 1].isspace():
        return -1
    if position + 1 < len(source) and source[position + 1].isdigit():
        return -1
    if source[start].isdigit() and not _FORMULA_SIGNS.intersection(source[start:position]):
        return -1
    return position


def _render_block(renderer: object, tokens: Sequence[Token], index: int, options: object, env: object) -> str:
    token = tokens[index]
    mathml = formula_mathml(token.content, display=True)
    if mathml is None:
        return f'<pre class="formula-source">{html.escape(token.meta["source"])}</pre>\n'
    return f'<div class="formula">{mathml}</div>\n'


def _render_inline(
    renderer: object, tokens: Sequence[Token], index: int, options: object, env: object
) -> str:
    token = tokens[index]
    mathml = formula_mathml(token.content, display=token.meta["display"])
    if mathml is None:
        return f'<code class="formula-source">{html.escape(token.meta["source"])}</code>'
    return mathml
