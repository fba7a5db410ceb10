"""The pages of the documentation, and the commands and code in them."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHELLS = ("sh", "bash")

FENCE = re.compile(r"^( *)```(\w*)[ ]*(\{[^}\n]*\})?[ ]*\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)
SNIPPET = re.compile(r'^--8<-- "(.+)"$', re.MULTILINE)


@dataclass(frozen=True)
class Fence:
    """What stands between two lines of three backticks.

    Args:
        language: The word behind them.
        marks: What stands in braces behind it, as `.exit-3`.
        text: The lines between, without their common indentation.
    """

    language: str
    marks: tuple[str, ...]
    text: str

    @property
    def status(self) -> int:
        """The exit status that the page states: 0, or that of the mark `.exit-N`."""
        return next((int(mark.removeprefix(".exit-")) for mark in self.marks if mark.startswith(".exit-")), 0)

    @property
    def commands(self) -> list[list[str]]:
        """Its lines as words of a shell, continued ones joined, without comments and empty ones."""
        lines = self.text.replace("\\\n", " ").splitlines()
        split = (shlex.split(line.removeprefix("$ "), comments=True) for line in lines)
        return [words for words in split if words]

    @property
    def luna_commands(self) -> list[list[str]]:
        """What it tells to type to `luna-cls` itself, without that word, but for what takes a cluster."""
        if self.language != "sh":
            return []
        lines = (words[1:] for words in self.commands if words[0].split("/")[-1] == "luna-cls")
        return [words for words in lines if "--dask" not in words]


@dataclass(frozen=True)
class Page:
    """A page in Markdown."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))

    @cached_property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def fences(self) -> list[Fence]:
        """Its fences in order; indented lines that begin with `luna-cls` are one of a shell, too."""
        fences, end = [], 0
        for match in FENCE.finditer(self.text):
            fences += _indented(self.text[end : match.start()])
            indent, language, marks, text = match.groups()
            lines = re.sub(f"^{indent}", "", text, flags=re.MULTILINE)
            fences.append(Fence(language, tuple((marks or "{}")[1:-1].split()), lines))
            end = match.end()
        return [*fences, *_indented(self.text[end:])]

    @property
    def examples(self) -> list[Fence]:
        """The fences that are run."""
        return [fence for fence in self.fences if fence.luna_commands or fence.language == "python"]

    @property
    def prose(self) -> str:
        """The page without what is in fences."""
        return FENCE.sub("", self.text)

    @property
    def headings(self) -> set[str]:
        """The anchors of its headings."""
        return {
            re.sub(r"[^\w -]", "", heading.lower().replace("`", "")).strip().replace(" ", "-")
            for heading in re.findall(r"^#+ (.*?)\s*$", self.prose, re.MULTILINE)
        }


def _indented(text: str) -> list[Fence]:
    blocks = re.findall(r"^ {4,}(?:\S+/)?luna-cls .*(?:\n {4,}.*)*", text, re.MULTILINE)
    return [Fence("sh", (), re.sub(r"^ +", "", block, flags=re.MULTILINE)) for block in blocks]


def pages() -> list[Page]:
    """README, the pages of `docs` and those of `data`; no page stands for what others only take in."""
    found = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "data").glob("*.md")),
    ]
    return [Page(path) for path in found if not SNIPPET.match(path.read_text(encoding="utf-8"))]


def table(page: str, first_column: str) -> dict[str, list[str]]:
    """The rows of the table of a page whose first column is called so, by what stands in that in code.

    Raises:
        KeyError: If there is no such table. Rows of all tables with that first column are taken together.
    """
    text = (ROOT / page).read_text(encoding="utf-8")
    parts = re.findall(
        rf"^\| {re.escape(first_column)} \|.*\n\|[-|: ]+\|\n((?:\|.*\n?)+)", text, re.MULTILINE
    )
    if not parts:
        raise KeyError(f"{page} has no table of '{first_column}'")
    rows = {}
    for line in "".join(part if part.endswith("\n") else part + "\n" for part in parts).splitlines():
        name, *cells = (cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1])
        rows[name.strip("`")] = cells
    return rows
