"""Property: a streamed answer shows what its one-shot rendering shows, for every cut."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from telechat.serve.page.rendering import StreamRenderer, render_blocks

_LINES = [
    *(
        "",
        " ",
        "  ",
        "    ",
        "text",
        "more text  ",
        "# title",
        "===",
        "---",
        "--",
        "-",
        "***",
        "> quote",
        ">",
    ),
    *(
        "- item",
        "* item",
        "  - nested",
        "    deep",
        "1. one",
        "2) two",
        "- [ ] task",
        "```",
        "```python",
        "~~~",
    ),
    *(
        "    code",
        "\tcode",
        "| a | b |",
        "|---|:-:|",
        "a | b",
        "-|-",
        "| 1 | 2 |",
        "$$",
        "$$ x $$",
        "$$x",
        "x$$",
    ),
    *("$x^2$ and $5", r"\[", r"\]", r"\[ y \]", r"\(z\)", "[ref]: http://a.b", "[ref]", "<div>", "</div>"),
    *(
        "<!-- c",
        "-->",
        "**bold",
        "bold**",
        "`code",
        "code`",
        "![i](http://a/b.png)",
        "https://a.b/c",
        "\\",
        "中文。",
    ),
    *(
        "> - item",
        "> ```",
        "- ```",
        "- | a | b |",
        "  |---|---|",
        "- $$",
        "  x",
        ">     code",
        "- # t",
        "+",
        "1.",
    ),
]
_ENDS = st.sampled_from(["\n", "\n", "\n\n", "\r\n", "\r"])
_DOCUMENTS = st.one_of(
    st.lists(st.tuples(st.sampled_from(_LINES), _ENDS), max_size=14).map(
        lambda lines: "".join(line + end for line, end in lines)
    ),
    st.text(alphabet="ab -*+_#>`~|:$\\[]()<!=1.\t\r\n\0\ud800", max_size=60),
)


def _streamed_at_every_step(text: str, cuts: list[int]) -> None:
    renderer = StreamRenderer()
    settled: list[str] = []
    bounds = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in pairwise(bounds):
        renderer.push(text[start:end])
        update = renderer.update()
        settled += update.settled
        assert "".join(settled) + update.tail == "".join(render_blocks(text[:end]))
    update = renderer.finish()
    assert settled + update.settled == render_blocks(text)
    assert update.tail == ""


@settings(max_examples=400, deadline=None)
@given(_DOCUMENTS, st.lists(st.integers(0, 400), max_size=6))
@example("- a\n\n-", [6])
@example("$$\nx\n\n$$\n", [4, 5, 7])
@example("a\r\nb", [2])
@example("p\n| a | b |\n|---|---|\n", [3, 12])
def test_streamed_equals_one_shot_for_random_cuts(text: str, cuts: list[int]) -> None:
    _streamed_at_every_step(text, cuts)


@settings(max_examples=100, deadline=None)
@given(_DOCUMENTS)
def test_streamed_equals_one_shot_one_character_at_a_time(text: str) -> None:
    _streamed_at_every_step(text, list(range(len(text))))


def test_finished_blocks_are_settled_and_sent_once() -> None:
    renderer = StreamRenderer()
    renderer.push("# one\n\ntwo\n\nthree")
    first = renderer.update()
    assert first.settled == [
        "<h3>one</h3>\n"
    ]  # "two" could still go on: its successor is not yet a full line
    assert first.tail == "<p>two</p>\n<p>three</p>\n"
    renderer.push("\n")
    assert renderer.update().settled == ["<p>two</p>\n"]
    assert renderer.finish().settled == ["<p>three</p>\n"]
