"""An inspection as one HTML page without scripts or outside references. Every text in it is escaped."""

from __future__ import annotations

from html import escape

from telechat.data.inspection import Inspection, ShownSequence, ShownToken

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light dark; --line: #8885; --learnt: #1a7f3733; --learnt-edge: #1a7f37; }
body { font: 15px/1.6 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; max-width: 62rem; }
h1 { font-size: 1.3rem; overflow-wrap: anywhere; } h2 { font-size: 1.05rem; margin-top: 2rem; }
table { border-collapse: collapse; } th, td { padding: .15rem .8rem .15rem 0; text-align: left; }
th[scope=row] { font-weight: normal; } td { text-align: right; font-variant-numeric: tabular-nums; }
tr.total > * { border-top: 1px solid var(--line); font-weight: 600; }
.bar { display: inline-block; height: .8em; background: var(--learnt-edge); }
td.wide { text-align: left; width: 20rem; }
section { border: 1px solid var(--line); border-radius: .4rem; margin: 1rem 0; padding: .2rem 1rem 1rem; }
section h3 { font-size: .9rem; border-top: 1px dashed var(--line); margin: 1rem 0 .4rem; padding-top: .6rem; }
section h3:first-of-type { border-top: 0; margin-top: 0; }
p.tokens { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-family: ui-monospace, monospace; }
.t { border-radius: 2px; box-shadow: inset 0 0 0 .5px var(--line); }
.l { background: var(--learnt); border-bottom: 2px solid var(--learnt-edge); } .k { font-weight: 700; }
"""


def render_html(inspection: Inspection) -> str:
    """The page."""
    name = escape(inspection.name)
    accounting = inspection.accounting
    samples = "".join(
        f"<section><h2>Sample {number}</h2>{''.join(map(_sequence, sample))}</section>"
        for number, sample in enumerate(inspection.samples, 1)
    )
    kinds = "".join(f"<p>{escape(path)}: {escape(kind)}</p>" for path, kind in accounting.files.items())
    bad = "".join(f"<li>{escape(str(row))}</li>" for row in accounting.bad_rows)
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>Training data: {name}</title><style>{_STYLE}</style>"
        f"<h1>Training data: {name}</h1>{kinds}<p>Tokens of {escape(inspection.tokenizer)}.</p>"
        f"<h2>Where every row and token went</h2>{_accounting(inspection)}"
        + (f"<h2>Malformed rows</h2><ul>{bad}</ul>" if bad else "")
        + f"<h2>Lengths in tokens</h2>{_bars(inspection)}"
        '<h2>Samples</h2><p>A token is <span class="t l">marked</span> where it is learnt; '
        '<span class="t k">bold</span> is a control token. Its id shows when the pointer rests on it. '
        "Dashed lines are borders that attention does not cross.</p>"
        f"{samples}</html>\n"
    )


def _accounting(inspection: Inspection) -> str:
    accounting = inspection.accounting
    rows = "".join(
        f"<tr{' class=total' if what.startswith('=') else ''}>"
        f'<th scope="row">{escape(what)}</th><td>{rows:,}</td><td>{tokens:,}</td></tr>'
        for what, rows, tokens in accounting.lines()
    )
    return (
        f'<table><tr><td></td><th scope="col">rows</th><th scope="col">tokens</th></tr>{rows}</table>'
        f"<p>{escape(accounting.summary())}</p>"
    )


def _bars(inspection: Inspection) -> str:
    most = max((bar.count for bar in inspection.bars), default=0)
    rows = "".join(
        f'<tr><th scope="row">{bar.low}–{bar.high}</th><td>{bar.count:,}</td><td class="wide">'
        f'<span class="bar" style="width:{100 * bar.count / max(most, 1):.1f}%"></span></td></tr>'
        for bar in inspection.bars
    )
    return f"<table>{rows}</table>"


def _sequence(sequence: ShownSequence) -> str:
    tokens = "".join(map(_token, sequence.tokens))
    return f'<h3>{escape(sequence.title)}</h3><p class="tokens">{tokens}</p>'


def _token(token: ShownToken) -> str:
    classes = "t" + (" l" if token.is_target else "") + (" k" if token.is_control else "")
    return f'<span class="{classes}" title="{token.token_id}">{escape(token.text)}</span>'
