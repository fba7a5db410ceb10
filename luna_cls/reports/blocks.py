"""What a page is made of: sections of paragraphs, figures, tables and cards."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from luna_cls.judging.froc import RATES_PER_SCAN

RATE_NAMES = dict(zip(RATES_PER_SCAN, ("1/8", "1/4", "1/2", "1", "2", "4", "8"), strict=True))

_NEAREST = 1e-6  # to 0 and to 1: digits beyond that say nothing


class Uid(str):
    """A series UID in a table of many: its end is shown, the whole where it is pointed at.

    Args:
        uid: The whole.
        page: The scan's own page, from here; empty if it has none.
    """

    page: str

    def __new__(cls, uid: str, page: str = "") -> Uid:
        """A string that knows of a page."""
        made = super().__new__(cls, uid)
        made.page = page
        return made


@dataclass(frozen=True)
class Table:
    """Numbers or words in rows.

    Args:
        caption: What they are.
        columns: A heading for each.
        rows: Cells as they are to be read; the first of a row is its heading.
        of_words: Whether cells are words, which begin at the left, and not numbers.
        beside_figures: Whether it stands in a row with figures.
        groups: A heading over columns that belong together, and how many these are, from the left; empty
            for none.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    of_words: bool = False
    beside_figures: bool = False
    groups: Sequence[tuple[str, int]] = ()

    kind = "table"

    @property
    def starts(self) -> list[int]:
        """Columns with which a group begins, the first of all left out."""
        return list(accumulate(count for _, count in self.groups))[:-1]


@dataclass(frozen=True)
class Figure:
    """A drawing with what it says, in words and in numbers.

    Args:
        title: A few words, its heading.
        svg: The drawing, as `drawing.to_svg` gives it.
        alternative: What a reader sees in it, for one who cannot see it.
        caption: How to read it.
        numbers: The numbers drawn.
    """

    title: str
    svg: str
    alternative: str
    caption: str
    numbers: Table | None = None

    kind = "figure"


@dataclass(frozen=True)
class Card:
    """A point in a scan, with its cube to look through.

    Args:
        heading: A few words, first of all its rank.
        facts: Pairs of a name and a value.
        still: The middle planes as a PNG in base64; empty if there is no cube.
        sprite: All planes of the cube as a PNG in base64.
        size_vox: Its edge.
        spacing_mm: Between its voxels.
        missing: Why there is no cube.
        overlay_still: The middle planes under colours that explain the finding, as a PNG in base64; empty
            if it is not explained.
        overlay_sprite: The colours of all planes as grey values, as `viewer.in_strength` gives them.
    """

    heading: str
    facts: Sequence[tuple[str, str]]
    still: str = ""
    sprite: str = ""
    size_vox: int = 0
    spacing_mm: float = 1.0
    missing: str = ""
    overlay_still: str = ""
    overlay_sprite: str = ""

    @property
    def reach_steps(self) -> int:
        """How many planes there are on either side of the middle."""
        return self.size_vox // 2


@dataclass(frozen=True)
class Cards:
    """Points of one kind, side by side."""

    cards: Sequence[Card]

    kind = "cards"


@dataclass(frozen=True)
class Listing:
    """Text as it stands in a file."""

    title: str
    text: str

    kind = "listing"


@dataclass(frozen=True)
class Detail:
    """What only some readers want, folded up.

    Args:
        title: What is there, to decide by.
        text: Paragraphs.
        table: What follows them.
    """

    title: str
    text: Sequence[str]
    table: Table

    kind = "detail"


Block = Table | Figure | Cards | Listing | Detail


@dataclass(frozen=True)
class Section:
    """A part of a page under a heading.

    Args:
        name: Its anchor.
        heading: A few words.
        text: Paragraphs.
        blocks: What follows them.
        hint: How to get what is not there.
    """

    name: str
    heading: str
    text: Sequence[str] = ()
    blocks: Sequence[Block] = ()
    hint: str = ""


@dataclass(frozen=True)
class Page:
    """A report.

    Args:
        kind: What was reported: "Evaluation", "Training run", ...
        title: Of what.
        verdict: A sentence or two: what there is to know.
        facts: The few numbers that count: name, value, and a word on it.
        warnings: What may mislead, a sentence each.
        sections: In the order of reading.
    """

    kind: str
    title: str
    verdict: str
    facts: Sequence[tuple[str, str, str]] = ()
    warnings: Sequence[str] = ()
    sections: Sequence[Section] = field(default_factory=list)


def number(value: float | None, digits: int = 3) -> str:
    """A number with some digits after the point; a dash if it is not defined."""
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as 84.2 %."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def interval(pair: Sequence[float | None] | None, digits: int = 3) -> str:
    """An interval as 0.822 to 0.861; a dash if there is none."""
    if pair is None or None in pair:
        return "–"
    return " to ".join(number(value, digits) for value in pair)


def probability(value: float | None) -> str:
    """A probability with two digits that count, as seen from 0 or from 1: 0.50, 0.970, 0.99980, 0.00012."""
    if value is None or math.isnan(value):
        return "–"
    rest = min(value, 1 - value)
    if 0 < rest < _NEAREST:
        return f"< {_NEAREST:f}" if value < 0.5 else f"> {1 - _NEAREST:f}"
    return f"{value:.{2 if rest <= 0 else max(2, 1 - math.floor(math.log10(rest)))}f}"


def count_of(part: float, whole: float) -> str:
    """A count beside what it is of: 1,012 of 1,186."""
    return f"{part:,.0f} of {whole:,.0f}"


def plural(count: int, what: str) -> str:
    """A count and its noun: 1 scan, 2 scans, 1,186 nodules."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")
