"""Self-contained HTML pages: one file each, without external resources."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Iterator, Sequence


def escape(text: object) -> str:
    """Escape any text for HTML; control characters become visible, lone surrogates `?`."""
    return html.escape(visible_text(text))


def visible_text(text: object) -> str:
    """Make any text valid UTF-8; control characters become visible, lone surrogates `?`."""
    return str(text).translate(_VISIBLE).encode("utf-8", "replace").decode("utf-8")


# HTML forbids control characters: they become the symbols of the block Control Pictures.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {127: 0x2421}


# Between a number and its unit, and between the parts of a duration.
_SPACE_IN_FIGURE = re.compile(r"(?<=\d) (?=[A-Za-z%])|(?<=\bmin) (?=\d)|(?<=\bh) (?=\d)")


def unbroken(text: str) -> str:
    """Replace the spaces within figures, such as `2 min 30 s`, by no-break spaces."""
    return _SPACE_IN_FIGURE.sub("\u00a0", text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table of cells that are HTML already; if too wide, it scrolls.

    Figures are not broken into lines: cells that begin with a digit and have at most 30 characters.
    """
    return "".join(_table(head, rows, kind))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str) -> Iterator[str]:
    yield f'<div class="scroll"><table class="{kind}"><thead><tr>'
    yield from (f"<th>{cell}</th>" for cell in head)
    yield "</tr></thead><tbody>"
    for row in rows:
        yield "<tr>" + "".join(map(_cell, row)) + "</tr>"
    yield "</tbody></table></div>"


_TAG = re.compile(r"<[^>]*>")
_FIGURE = re.compile(r"-?\d.{,29}", re.DOTALL)


def _cell(content: str) -> str:
    is_figure = _FIGURE.fullmatch(_TAG.sub("", content))
    return f'<td class="figure">{content}</td>' if is_figure else f"<td>{content}</td>"


def page(title: str, body: str, script: str = "") -> str:
    """Return a complete HTML page that loads no resources and runs one script at most.

    Args:
        title: plain text.
        body: HTML.
        script: JavaScript; the Content-Security-Policy allows this script alone, by its hash.

    Raises:
        ValueError: if the script contains `</script` or `<!--`.
    """
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("a script must not contain what ends it in HTML")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"; script-src 'sha256-{digest}'" if script else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # Defense in depth: markup in a sample could not load or run anything, even unescaped.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'{allowed}\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{body}</main>"
        + (f"<script>{script}</script>" if script else "")
        + "</body></html>\n"
    )


COLORS = 6
# WCAG contrast on the cards, in both schemes: at least 3:1 for colours, 4.5:1 for text.
_STYLE = """
:root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --text: #1b1f24; --soft: #59636e;
  --line: #d8dce1; --grid: #e8eaed; --mark: #fff1b8; --0: #1f6feb; --1: #d4491c; --2: #1a7f4b;
  --3: #8250df; --4: #9a6700; --5: #bf3989 }
@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --card: #161b22; --text: #e6edf3;
  --soft: #9aa4af; --line: #30363d; --grid: #262c34; --mark: #5c4a00; --0: #58a6ff; --1: #ff8f6b;
  --2: #4cc38a; --3: #b694ff; --4: #e0b341; --5: #f287c0 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif }
main { max-width: 68rem; margin: 0 auto; padding: 1.75rem 1rem 3rem }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem }
h3 { font-size: .95rem; margin: 0 0 .6rem }
small, .soft { color: var(--soft); font-weight: 400; font-size: .85rem }
p { margin: .35rem 0 }
.tiles { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.25rem 0 .75rem }
.tiles div, .card, .chart { background: var(--card); border: 1px solid var(--line);
  border-radius: 10px }
.tiles div { flex: 1 1 8.5rem; padding: .7rem .9rem }  /* at least as wide as its figure */
.tiles b { display: block; font-size: 1.3rem; font-weight: 600; line-height: 1.3;
  white-space: nowrap; font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: .85rem }
.charts { display: grid; gap: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 18rem), 1fr)) }
.chart { margin: 0; padding: .9rem 1rem .7rem; min-width: 0 }
.wide { grid-column: 1 / -1; min-width: 0 }
.plot { position: relative; height: 13rem; margin: .2rem .6rem 1.4rem 2.9rem;
  border-bottom: 1px solid var(--soft) }
.wide .plot { height: 20rem }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible;
  clip-path: inset(0 -5px) }  /* dots at the ends stay round */
.plot path { fill: none; vector-effect: non-scaling-stroke }
.plot .grid { stroke: var(--grid); stroke-width: 1 }
.plot .mark { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 4 3 }
.plot .line { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round }
.plot .line.faint { stroke-width: 1; opacity: .4 }
.plot .dot { stroke-width: 7; stroke-linecap: round }
.plot span { position: absolute; color: var(--soft); font-size: .75rem; white-space: nowrap;
  font-variant-numeric: tabular-nums }
.plot .y { right: 100%; transform: translateY(50%); padding-right: .45rem }
.plot .x { top: 100%; transform: translateX(-50%); padding-top: .2rem }
.x-name { text-align: center; font-size: .75rem; color: var(--soft); margin: 0 0 .25rem 2.9rem }
.none { color: var(--soft); padding: 3rem 0; text-align: center }
.legend { display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .8rem;
  color: var(--soft) }
.tools { display: flex; flex-wrap: wrap; gap: .4rem; align-items: center; margin: 0 0 .75rem }
.tools small { margin-left: .3rem }
button { font: inherit; font-size: .8rem; color: var(--text); background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .2rem .6rem; cursor: pointer }
button[aria-pressed="true"] { background: var(--text); color: var(--card) }
h3 button { float: right; padding: 0 .5rem }
:focus-visible { outline: 2px solid var(--0); outline-offset: 2px }
.live .plot { touch-action: pan-y; cursor: crosshair }
.plot .cursor { stroke: var(--text); stroke-width: 1; opacity: .6 }
.plot .area { fill: var(--0); opacity: .15 }
.plot .here { stroke-width: 9 }
.tip { position: absolute; top: .2rem; right: .2rem; max-width: 80%; padding: .3rem .6rem;
  background: var(--card); border: 1px solid var(--line); border-radius: 6px; font-size: .8rem;
  font-variant-numeric: tabular-nums; pointer-events: none; user-select: none;
  overflow-wrap: anywhere }
.tip.left { right: auto; left: .2rem }
.tip p { margin: 0 }
.legend i, .tip i { display: inline-block; width: 1.1rem; border-top: 3px solid;
  margin-right: .4rem; vertical-align: middle }
.legend i.faint, .tip i.faint { border-top-width: 1px; opacity: .6 }
.legend i.mark { border-top: 1px dashed var(--soft) }
.card { padding: .9rem 1rem; margin-bottom: .75rem; min-width: 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .35rem 0 0; unicode-bidi: isolate;
  font: .85rem/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; tab-size: 4 }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: .05em 0 }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; margin-bottom: .75rem }
table { border-collapse: collapse; width: 100%; font-size: .85rem }
th, td { text-align: left; padding: .35rem .9rem; border-bottom: 1px solid var(--grid);
  vertical-align: top; font-variant-numeric: tabular-nums }
tbody tr:last-child td { border-bottom: 0 }
th { color: var(--soft); font-weight: 500; white-space: nowrap }
td { overflow-wrap: anywhere; min-width: 4rem }
td.figure { white-space: nowrap }
td pre { margin: 0; min-width: 14rem }
summary { cursor: pointer; margin: .5rem 0; color: var(--soft) }
code { font: .95em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
"""
_STYLE += "".join(
    f".plot .c{n} {{ stroke: var(--{n}) }}\n"
    f".legend .c{n}, .tip .c{n} {{ border-color: var(--{n}) }}\n"
    for n in range(COLORS)
)
_STYLE += "@media print { .tools, button { display: none } }\n"
