"""The only way to a terminal: nothing in a text is markup, and nothing in it steers the terminal."""

import logging
import os
from collections.abc import Iterable
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.table import Table
from rich.text import Text

from fedcybgd.shared.contract.plain import plain
from fedcybgd.shared.host.logs import JsonFormatter

IDS = {"id", "run", "token", "digest"}
NAMES = {"name", "agent"}
NARROWEST = 6
"""Characters that any other column needs"""
WORD = 24
"""Characters of the longest word that is kept whole in any column: a time has 19"""
LOG_FORMAT = "%(asctime)s %(levelname)s %(message)s"


class Terminal(Console):
    """Prints text as it is. Colours come from `style=` and `Text`, never from what a text says."""

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # Everything that is drawn comes through here, cells of tables and titles too, and tables in whatever they stand in.
        if isinstance(renderable, Table):
            for column in renderable.columns:
                column.overflow = "fold"
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(plain(segment.text), segment.style)

    def status(self, status: RenderableType, **options: Any) -> Status:
        # A spinner would read markup.
        return super().status(Text(status) if isinstance(status, str) else status, **options)

    def say(self, text: str, style: str | None = None, end: str = "\n") -> None:
        """Lines of text, as long as they are: whoever copies a key or an id gets it whole."""
        self.print(text, style=style, end=end, soft_wrap=True)

    def parts(self, parts: Iterable[RenderableType]) -> None:
        """One below the other: text as long as it is, tables with nothing cut."""
        for part in parts:
            if isinstance(part, Table):
                self.table(part)
            else:
                self.print(part, soft_wrap=isinstance(part, Text))

    def table(self, table: Table) -> None:
        """Draw a table; what is too long for its column goes on in the next line and is never cut. Names and ids do so last.

        Where not even words would stay whole, each row is drawn as lines, one for a column.
        """
        if self.is_terminal and table.rows and _needed(table) > self.width:
            self._rows_as_lines(table)
            return
        longest = [max(cell_len(str(cell)) for cell in [column.header, *column.cells]) for column in table.columns]
        for column, length in zip(table.columns, longest, strict=True):
            column.min_width = min(NARROWEST, length)
        for whole in (IDS | NAMES, IDS):
            widths = [n if c.header in whole else min(NARROWEST, n) for c, n in zip(table.columns, longest, strict=True)]
            needed = sum(widths) + 3 * len(widths) + 1
            if needed <= self.width:
                break
        for column in table.columns:
            column.no_wrap = column.header in whole
        before = self._width
        # Where not even that fits, the terminal breaks the lines: rich would leave out what stands to the right.
        self.width = max(self.width, needed)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            # A file or a program reads it: a line for each row, however long.
            self.width = max(self.width, sum(longest) + 3 * len(longest) + 1)
        try:
            self.print(table)
        finally:
            self._width = before

    def _rows_as_lines(self, table: Table) -> None:
        for number, cells in enumerate(zip(*(column.cells for column in table.columns), strict=True)):
            if number:
                self.say("")
            for column, cell in zip(table.columns, cells, strict=True):
                if str(cell):
                    said = Text.assemble((" ".join(f"{column.header}:".split()), "bold"), " ", cell)
                    self.print(said, soft_wrap=column.header in IDS, overflow="fold")
        if table.caption:
            self.print(table.caption)


def _needed(table: Table) -> int:
    """Characters of a line in which every word of a table stays whole."""
    longest = [
        max((cell_len(word) for cell in [column.header, *column.cells] for word in str(cell).split()), default=0)
        for column in table.columns
    ]
    words = sum(n if c.header in IDS else min(n, WORD) for c, n in zip(table.columns, longest, strict=True))
    return words + (3 * len(longest) + 1 if table.box else len(longest))


class PlainFormatter(logging.Formatter):
    """Log lines for a terminal or a journal: names and messages in them may be anybody's, and none of them begins a line of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record)).replace("\n", "\n    ")


def log_plainly(level: int | str, format: str = LOG_FORMAT, kind: Literal["text", "json"] = "text") -> None:
    """Set up logging to standard error: lines of this format for people, or an object each for programs."""
    logging.basicConfig(level=level)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainFormatter(format) if kind == "text" else JsonFormatter())
