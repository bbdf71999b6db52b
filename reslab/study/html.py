"""A report as one HTML file: no network, no script, screen, phone and paper."""

import html
from collections.abc import Sequence

from reslab.core.errors import printable
from reslab.observe import svg
from reslab.observe.charts import Legend
from reslab.study.document import (
    MARK,
    Document,
    Facts,
    Figure,
    Section,
    Table,
    Text,
    anchor,
)

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1d20; --paper: #fff; --quiet: #5b6168;
  --line: #d5d8dc; --mark: #fff4d6; --mark-ink: #5c4400; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e5e8; --paper: #15171a;
  --quiet: #a0a7af; --line: #3a3f45; --mark: #3a2f10; --mark-ink: #f5dfa3; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 1.5rem 1rem 4rem;
  background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .4rem; }
p { margin: .5rem 0; max-width: 46rem; }
p.mark { background: var(--mark); color: var(--mark-ink); padding: .5rem .75rem;
  border-left: 4px solid #E69F00; max-width: none; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr);
  font-size: .875rem; gap: .15rem 1rem; margin: 1rem 0; max-width: 52rem; }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; font-size: .875rem; }
a { color: inherit; }
/* A shade at the right where a table continues; paper covers it at the end. */
.box { overflow-x: auto; margin: .75rem 0 1.25rem; background:
  linear-gradient(var(--paper), var(--paper)) right / 1.5rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat; }
table { border-collapse: collapse; font-size: .8rem; line-height: 1.35;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; }
td { max-width: 30rem; }
tbody th { min-width: min(8.5rem, 36vw); max-width: min(16rem, 40vw);
  overflow-wrap: anywhere; }
tr > th:first-child { position: sticky; left: 0; background: var(--paper); }
tr.best > * { font-weight: 700; }
td.n { white-space: nowrap; }
td.long { min-width: 14rem; overflow-wrap: anywhere; }
thead th { vertical-align: bottom; font-weight: 600;
  border-bottom: 1.5px solid var(--ink); border-top: 1.5px solid var(--ink); }
tbody tr:last-child > * { border-bottom: 1.5px solid var(--ink); }
tbody th { font-weight: 600; }
th.n, td.n { text-align: right; }
.note { color: var(--quiet); font-size: .8rem; max-width: 46rem; margin-top: -.75rem; }
.grid { display: grid; gap: 2rem 2.5rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 30rem; }
figure.maps, figure.lines { max-width: none; margin: 1.25rem 0 2.25rem; }
figure svg { display: block; width: 100%; height: auto; }
.panels { display: grid; gap: .75rem; align-items: end; max-width: 60rem;
  grid-template-columns: repeat(auto-fill, minmax(min(47%, 13rem), 1fr)); }
.lines .panels { max-width: none; align-items: start;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); }
.key { max-width: 26rem; margin-top: .4rem; }
figcaption { color: var(--quiet); font-size: .8rem; margin-top: .4rem; }
details { font-size: .8rem; margin: .3rem 0; }
summary { cursor: pointer; color: var(--quiet); }
pre { overflow: auto; max-height: 20rem; border: 1px solid var(--line);
  padding: .6rem; font: .75rem/1.4 ui-monospace, monospace; overflow-wrap: normal;
  user-select: all; }
@media print {
  :root { --ink: #000; --paper: #fff; --quiet: #333; --line: #999; --mark: #fff;
    --mark-ink: #000; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  figure, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
  .box { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding-right: .5em; white-space: normal; }
  details:not([open]) { display: none; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""


def to_html(document: Document) -> str:
    """The report as a page that needs nothing but itself."""
    title = html.escape(document.title)
    facts, contents = _facts(document.facts), _contents(document.sections)
    body = "\n".join(_section(section) for section in document.sections)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # The page sends no requests, whatever names it contains.
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        f'<meta name="generator" content="{MARK}">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{title}</h1>\n{facts}\n{contents}\n{body}\n</body>\n</html>\n"
    )
    return printable(page)


def _facts(facts: Facts) -> str:
    rows = (
        f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>"
        for name, value in facts.rows
    )
    return f"<dl>{''.join(rows)}</dl>"


def _contents(sections: Sequence[Section]) -> str:
    links = (
        f'<a href="#{anchor(section)}">{html.escape(section.title)}</a>'
        for section in sections
    )
    return f"<nav>{' '.join(links)}</nav>"


_NARROW = 3  # Figures that fill half a page: two maps and their key.


def _section(section: Section) -> str:
    parts, plain = [], []
    for part in section.parts:
        if isinstance(part, Figure) and _is_narrow(part):
            plain.append(_figure(part))  # Neighbours share a row.
            continue
        parts += _grid(plain)
        plain = []
        if isinstance(part, Figure):
            parts.append(_figure(part))
        elif isinstance(part, Table):
            parts.append(_table(part))
        else:
            parts.append(_text(part))
    parts += _grid(plain)
    return (
        f'<section id="{anchor(section)}">\n<h2>{html.escape(section.title)}</h2>\n'
        + "\n".join(parts)
        + "\n</section>"
    )


def _is_narrow(figure: Figure) -> bool:
    is_of_lines = isinstance(figure.charts[-1], Legend)
    return len(figure.charts) <= _NARROW and not is_of_lines


def _grid(figures: list[str]) -> list[str]:
    return [f'<div class="grid">{"".join(figures)}</div>'] if figures else []


def _text(part: Text) -> str:
    text = html.escape(part.text)
    if part.kind == "code":
        return f"<pre>{text}</pre>"
    kind = ' class="mark"' if part.kind == "mark" else ""
    return f"<p{kind}>{text}</p>"


def _table(table: Table) -> str:
    numeric = [table.is_numeric(i) for i in range(len(table.header))]

    def cell(tag: str, text: str, column: int, scope: str = "") -> str:
        kind = "n" if numeric[column] else "long" if len(text) > 48 else ""
        attribute = f' class="{kind}"' if kind else ""
        return f"<{tag}{attribute}{scope}>{html.escape(text)}</{tag}>"

    head = "".join(
        cell("th", name, i, ' scope="col"') for i, name in enumerate(table.header)
    )
    rows = "".join(
        ('<tr class="best">' if number in table.emphasized else "<tr>")
        + cell("th", row[0], 0, ' scope="row"')
        + "".join(cell("td", text, i) for i, text in enumerate(row) if i)
        + "</tr>\n"
        for number, row in enumerate(table.rows)
    )
    # The caption is outside the box, so it does not scroll with a table wider than the
    # screen.
    label = html.escape(table.caption, quote=True)
    body = (
        f'<div class="box" role="region" aria-label="{label}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>"
    )
    if table.is_folded:
        return f"<details><summary>{label}</summary>{body}</details>"
    return f'{body}<p class="note">{label}</p>'


def _figure(figure: Figure) -> str:
    title = f"<h3>{html.escape(figure.title)}</h3>" if figure.title else ""
    drawn = [svg.draw(chart) for chart in figure.charts]
    if len(drawn) == 1:
        kind, drawings = "", drawn[0]
    else:
        *panels, key = drawn
        is_of_lines = isinstance(figure.charts[-1], Legend)
        kind = ' class="lines"' if is_of_lines else ' class="maps"'
        drawings = f'<div class="panels">{"".join(map("<div>{}</div>".format, panels))}'
        drawings += f'</div><div class="key">{key}</div>'
    return (
        f"<figure{kind}>{title}{drawings}"
        f"<figcaption>{html.escape(figure.caption)}</figcaption>"
        f"<details><summary>numbers</summary><pre>{html.escape(figure.data.tsv())}"
        "</pre></details></figure>"
    )
