"""What answers look like as HTML, and what never gets through."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.e2e.fake_api import ATTACKS

from telechat.serve.page.formulas import MAX_FORMULA_CHARS, formula_mathml
from telechat.serve.page.rendering import render_blocks

_ALLOWED_LINK = re.compile(r"(https?|mailto):", re.IGNORECASE)
_FORBIDDEN_TAGS = {
    "script",
    "style",
    "img",
    "iframe",
    "form",
    "input",
    "svg",
    "base",
    "meta",
    "object",
    "link",
}


class _Inspector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _FORBIDDEN_TAGS:
            self.found.append(tag)
        for name, value in attrs:
            wrong_link = name == "href" and (tag != "a" or not _ALLOWED_LINK.match(value or ""))
            if wrong_link or name.startswith("on") or name in ("style", "src", "id", "xlink:href"):
                self.found.append(f"{tag} {name}={value}")


def _html(text: str) -> str:
    return "".join(render_blocks(text))


def _dangers(text: str) -> list[str]:
    inspector = _Inspector()
    inspector.feed(_html(text))
    return inspector.found


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_leave_nothing_active(attack: str) -> None:
    assert _dangers(attack) == []
    assert _dangers(f"- {attack}\n  > {attack}") == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from([*ATTACKS, "\n", "\n\n", "`", "$", "**", "[", "](", ")", "<", ">", '"']), max_size=5
    )
)
def test_joined_attacks_leave_nothing_active(parts: list[str]) -> None:
    assert _dangers("".join(parts)) == []


def test_html_in_an_answer_is_text() -> None:
    assert (
        _html("a <b>bold</b> &amp; List<int>") == "<p>a &lt;b&gt;bold&lt;/b&gt; &amp; List&lt;int&gt;</p>\n"
    )


def test_an_image_is_a_link() -> None:
    assert _html("![a cat](http://a.b/cat.png)") == (
        '<p><a href="http://a.b/cat.png" target="_blank" rel="noopener noreferrer">a cat</a></p>\n'
    )


@pytest.mark.parametrize("url", ["http://a.b", "https://a.b/c", "mailto:me@a.b"])
def test_links_open_elsewhere_and_tell_nothing(url: str) -> None:
    assert f'<a href="{url}" target="_blank" rel="noopener noreferrer">x</a>' in _html(f"[x]({url})")


@pytest.mark.parametrize(
    "url", ["ftp://a.b", "javascript:alert(1)", "/local", "file:///etc", "data:text/html,x"]
)
def test_other_links_stay_text(url: str) -> None:
    assert "<a" not in _html(f"[x]({url})")


def test_bare_addresses_become_links_without_their_punctuation() -> None:
    html = _html("见 https://a.b/c_d_e(f)。还有 (http://x.y), 完。")
    assert 'href="https://a.b/c_d_e(f)"' in html
    assert 'href="http://x.y"' in html
    assert "<a" not in _html("`https://a.b`")


def test_references_are_off_so_that_later_lines_change_no_earlier_block() -> None:
    assert render_blocks("[x]\n\n[x]: http://a.b\n")[0] == "<p>[x]</p>\n"


def test_headings_stay_below_those_of_the_page() -> None:
    assert _html("# a\n## b\n###### c") == "<h3>a</h3>\n<h4>b</h4>\n<h6>c</h6>\n"


def test_line_ends_are_kept() -> None:
    assert _html("一\n二") == "<p>一<br>\n二</p>\n"


def test_a_table_has_classes_instead_of_styles() -> None:
    html = _html("|a|b|c|\n|:-|-:|:-:|\n|1|2|3|")
    assert html.startswith('<div class="table-wrap"><table>')
    assert all(f'class="align-{side}"' in html for side in ("left", "right", "center"))
    assert "style" not in html


def test_code_is_coloured_and_names_its_language() -> None:
    html = _html("```python title=x\ndef f(): pass\n```")
    assert '<span class="code-lang">python</span>' in html
    assert '<span class="k">def</span>' in html


@pytest.mark.parametrize("language", ["", "no-such-language"])
def test_code_in_an_unknown_language_is_plain(language: str) -> None:
    html = _html(f"```{language}\n<x> & 'y'\n```")
    assert "<pre><code class=\"hl\">&lt;x&gt; &amp; 'y'\n</code></pre>" in html


def test_code_keeps_its_blank_lines() -> None:
    code = re.search(r'<code class="hl">(.*)</code>', _html("```python\n\na\n\n\nb\n\n```"), re.DOTALL)
    assert code and re.sub(r"<[^>]+>", "", code[1]) == "\na\n\n\nb\n\n"


def test_task_items_show_boxes() -> None:
    assert _html("- [ ] a\n- [x] b") == "<ul>\n<li>☐ a</li>\n<li>☑ b</li>\n</ul>\n"


@pytest.mark.parametrize(
    "text",
    [
        "$x^2$",
        r"\(x^2\)",
        "$2x + 1 = 7$",
        "a $x$ b",
        "$$x$$",
        r"\[x\]",
        "$$\nx\n$$",
        "- $x$",
        "> $$\n> x\n> $$",
    ],
)
def test_formulas_are_mathml(text: str) -> None:
    assert "<math" in _html(text)


@pytest.mark.parametrize(
    "text", ["$5 and $10", "$ x$", "$x $", r"\$x$", "`$x$`", "$x$5", "US$5-US$10", "a $ b", "$$", "$"]
)
def test_money_and_lone_dollars_are_text(text: str) -> None:
    assert "<math" not in _html(text)


@pytest.mark.parametrize(
    "latex", [r"\frac{a", r"\left( x", "x^2^3", r"\nosuchcommand{x}", "", r"\begin{matrix} a"]
)
def test_a_formula_that_does_not_parse_shows_its_source(latex: str) -> None:
    assert formula_mathml(latex, display=False) is None
    if latex:
        assert f'<code class="formula-source">${latex}$</code>' in _html(f"${latex}$")
        assert '<pre class="formula-source">$$\n' in _html(f"$$\n{latex}\n$$")


def test_an_open_formula_ends_at_a_blank_line() -> None:
    assert _html("$$\nx\n\nafter") == '<pre class="formula-source">$$\nx</pre>\n<p>after</p>\n'


def test_text_inside_a_formula_is_text() -> None:
    html = _html(r"$\text{a <b>c</b> & d}$")
    assert "<b>" not in html


def test_a_huge_formula_is_not_converted() -> None:
    assert formula_mathml("{" * (MAX_FORMULA_CHARS + 1), display=True) is None
    assert formula_mathml("{" * MAX_FORMULA_CHARS, display=True) is None  # deep, and fails by itself


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_text_renders(text: str) -> None:
    assert _dangers(text) == []
