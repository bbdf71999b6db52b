"""A report as parts, before it is a page or a Markdown file."""

import dataclasses
import re
import urllib.parse
from collections.abc import Mapping, Sequence

from reslab.core.errors import escaped, printable
from reslab.observe.charts import Chart
from reslab.runtime.text import aligned, spreadsheet_cell

_NUMBER = re.compile(
    r"[-+<]?[\d.,]+(e[-+]?\d+)?( [KMG]?i?B)?|\[[^\]]*\]|—"  # A number or an interval.
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text, with a caption.

    Attributes:
      caption: What it shows and how it was computed.
      header: Names of the columns.
      rows: The cells.
      is_folded: Whether the page shows it only when asked.
      emphasized: Numbers of the rows that the page shows in bold.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    is_folded: bool = False
    emphasized: Sequence[int] = ()

    def is_numeric(self, column: int) -> bool:
        """Returns whether a column holds numbers, set to the right."""
        return all(_NUMBER.fullmatch(row[column]) for row in self.rows)

    def tsv(self) -> str:
        """The table as tab-separated lines, to be copied into anything."""
        rows = [self.header, *self.rows]
        cells = ((spreadsheet_cell(" ".join(c.split())) for c in row) for row in rows)
        return "\n".join(map("\t".join, cells))

    def text(self) -> str:
        """The table for a terminal."""
        rows = [self.header, *self.rows]
        return "\n".join(aligned([tuple(map(escaped, row)) for row in rows]))


@dataclasses.dataclass(frozen=True)
class Figure:
    """One drawing, or several that belong together, with the numbers behind them.

    Attributes:
      charts: The drawings; of several, panels on one scale, the last is their key.
      caption: What is shown, and the runs it comes from.
      data: The numbers.
      title: A heading of its own, or an empty string.
    """

    charts: Sequence[Chart]
    caption: str
    data: Table
    title: str = ""

    @property
    def name(self) -> str:
        """Returns the name of its file, without width and kind."""
        return re.sub("-(0|key)$", "", self.charts[0].identifier)

    @property
    def heading(self) -> str:
        """Returns the title, or its only chart's."""
        return self.title or self.charts[0].title


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; a mark is one that must not be overlooked, code is to be typed."""

    text: str
    kind: str = "plain"


@dataclasses.dataclass(frozen=True)
class Facts:
    """Facts to know before reading, one line for each.

    Attributes:
      rows: Names and values.
    """

    rows: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    parts: Sequence[Table | Figure | Text]


@dataclasses.dataclass(frozen=True)
class Document:
    """A report: a title, what it is about, and sections."""

    title: str
    sections: Sequence[Section]
    facts: Facts = Facts(())

    @property
    def figures(self) -> list[Figure]:
        """Returns the figures of all sections, in order."""
        parts = (part for section in self.sections for part in section.parts)
        return [part for part in parts if isinstance(part, Figure)]


MARK = "written by reslab report"  # In each file, so that it knows its own.


def anchor(section: Section) -> str:
    """Returns the name by which a section is linked."""
    return re.sub(r"[^a-z]+", "-", section.title.lower())


def to_markdown(document: Document, pictures: Mapping[str, str] | None = None) -> str:
    """The report as Markdown: all text and tables, and the captions of figures.

    Args:
      document: The report.
      pictures: Where the picture of a figure is, by the figure's name.

    Returns:
      The text.
    """
    blocks = [f"<!-- {MARK} -->", f"# {_plain(document.title)}"]
    rows = document.facts.rows
    blocks.append("\n".join(f"- {name}: {_plain(value)}" for name, value in rows))
    blocks.append("\n".join(f"- [{s.title}](#{anchor(s)})" for s in document.sections))
    for section in document.sections:
        blocks.append(f"## {_plain(section.title)}")
        for part in section.parts:
            if isinstance(part, Text):
                blocks.append(_paragraph(part))
            elif isinstance(part, Table):
                blocks += [_plain(part.caption), _markdown_table(part)]
            else:
                blocks.append(_captioned(part, (pictures or {}).get(part.name)))
    return "\n\n".join(blocks) + "\n"


def _captioned(figure: Figure, picture: str | None) -> str:
    heading = _plain(figure.heading)
    if picture is None:
        title = f"**{heading}.** " if figure.title else ""
        return f"{title}Figure, in the HTML file: {_plain(figure.caption)}"
    shown = f"![{heading}]({urllib.parse.quote(picture)})"
    return f"{shown}\n\n**{heading}.** {_plain(figure.caption)}"


def _paragraph(part: Text) -> str:
    if part.kind == "code":
        # Longer than any fence in the text.
        longest = max(map(len, re.findall("`+", part.text)), default=0)
        fence = "`" * max(3, longest + 1)
        return f"{fence}\n{printable(part.text)}\n{fence}"
    if part.kind == "mark":
        return f"**Note.** {_plain(part.text)}"
    # Characters that begin a heading, list, quotation or rule.
    return re.sub(r"^(\d*)([-+#>=.)])", r"\1\\\2", _plain(part.text))


def _markdown_table(table: Table) -> str:
    columns = range(len(table.header))
    rule = ["---:" if table.is_numeric(i) else "---" for i in columns]
    lines = [table.header, rule, *table.rows]
    return "\n".join(
        "| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines
    )


# Characters of Markdown images, links, emphasis, code, math and cells.
_MARKUP = re.compile(r"[\\`*\[\]|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=www)(?=\.)")


def _plain(text: str) -> str:
    """One line that Markdown shows as it is, with neither markup nor HTML."""
    text = escaped(" ".join(text.split()))
    if re.fullmatch(r"[-+\d.,e \[\]]+", text):  # A number or an interval.
        return text
    text = _MARKUP.sub(lambda found: f"\\{found[0]}", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("://", "\\://")
