"""The report of a folder: one HTML page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from luna_cls import __version__
from luna_cls.cubes.store import CubeStore
from luna_cls.errors import InputError
from luna_cls.files import write_text
from luna_cls.reports.blocks import Block, Cards, Page, Table, Uid
from luna_cls.reports.comparison_page import comparison_page
from luna_cls.reports.evaluation_page import evaluation_page, write_froc
from luna_cls.reports.losses_page import losses_page
from luna_cls.reports.prediction_page import prediction_page
from luna_cls.reports.run_page import run_page
from luna_cls.reports.scan_page import scan_page
from luna_cls.reports.viewer import GAP_PX, LOWERED, MOST_OPAQUE, NEUTRAL, RAISED, STRONGEST, Cubes
from luna_cls.scans.volume import CTVolume

REPORT = "report.html"
UID_END = 10  # of so many characters that are shown where there are many: they tell scans apart
MOST_ROWS_BESIDE = 12  # of the numbers of a figure that stands alone; more are folded up below it

_OPTION, _VALUE = r"--[a-z]+(?:-[a-z]+)*", r"(?:[A-Z]{2,}(?:/[\w.]*\w)?|\d+)"
_PROGRAM = r"(?:luna-cls [a-z]+|tensorboard(?= --))"
_COMMAND = re.compile(rf"(?<![\w-])(?:{_PROGRAM}|{_OPTION})(?: (?:{_OPTION}|{_VALUE})(?![\w,]))*")

# A folder is what the first of these files in it says. A run may hold an evaluation's files, not the reverse;
# the folder of one scan has a findings.csv, too; that of losses a comparison.json.
PAGES: dict[str, Callable[[Path, Cubes], Page]] = {
    "compare.json": losses_page,
    "comparison.json": comparison_page,
    "evaluation.json": evaluation_page,
    "history.csv": run_page,
    "findings.json": scan_page,
    "findings.csv": prediction_page,
}


def write_report(folder: Path, *, scans: Iterable[Path] = (), store: CubeStore | None = None) -> Path:
    """Writes `folder/report.html`: what the files of the folder say, for a reader.

    Only files are read, no model is run: any folder can be reported later, also elsewhere. The same files
    give the same bytes.

    Args:
        folder: An evaluation, a comparison of submissions or of losses, a finished run, or findings: of many
            scans or of one.
        scans: Scan files and folders of them, for pictures.
        store: Cubes, for pictures: looked into before the scans.

    Returns:
        The page.

    Raises:
        InputError: If the folder is none of these, a file in it is damaged, or there is no scan in `scans`.
    """
    if not folder.is_dir():
        raise InputError(
            f"No folder at {folder}. Give one that luna-cls train, crossval, compare, evaluate or predict "
            "has made."
        )
    read = next((read for sign, read in PAGES.items() if (folder / sign).is_file()), None)
    if read is None:
        raise InputError(
            f"{folder} is no run, evaluation, comparison or prediction: it has none of {', '.join(PAGES)}. "
            "Give a folder that luna-cls train, crossval, compare, evaluate or predict has made."
        )
    if read is run_page and not (folder / "metrics.json").is_file():
        raise InputError(
            f"The run {folder} is not finished: it has no metrics.json. Go on with it: --resume."
        )
    return _write(folder, read, Cubes(store, scans))


def write_scan_report(folder: Path, volume: CTVolume | None = None) -> Path:
    """Writes `folder/report.html`: the findings of one scan, from `findings.json` and the maps beside it.

    Args:
        folder: With a `findings.json`; perhaps `saliency_1.nii.gz` and further ones.
        volume: The scan, for pictures; None for a page without.

    Returns:
        The page.

    Raises:
        InputError: If a file is missing or damaged.
    """
    return _write(folder, scan_page, Cubes(volumes=[] if volume is None else [volume]))


def _write(folder: Path, read: Callable[[Path, Cubes], Page], cubes: Cubes) -> Path:
    try:
        html = render(read(folder, cubes))
    except InputError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        # Files are read as they were written. What has no number, name or list where one was is damaged.
        reason = " ".join(str(error).split()).rstrip(".")
        lacking = "it lacks " if isinstance(error, KeyError) else ""
        raise InputError(f"{folder} is damaged ({lacking}{reason}). Make it again.") from error
    write_text(folder / REPORT, html)
    return folder / REPORT


def write_evaluation_report(folder: Path, scans: Iterable[Path] = ()) -> None:
    """Adds to an evaluation folder its page and, if it has a FROC curve, that curve for a paper.

    Args:
        folder: With all else that `luna-cls evaluate` writes.
        scans: As for `write_report`.

    Raises:
        InputError: As `write_report`.
    """
    if (folder / "froc.json").is_file():
        write_froc(folder)
    write_report(folder, scans=scans)


def render(page: Page) -> str:
    """A page as HTML."""
    loader = PackageLoader("luna_cls.reports")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters["described"] = _described
    environment.filters["runs"] = _runs
    environment.filters["cell"] = _cell
    environment.filters["breakable"] = _breakable
    environment.filters["with_commands"] = _with_commands
    has_cubes = any(
        card.still
        for section in page.sections
        for block in section.blocks
        if isinstance(block, Cards)
        for card in block.cards
    )
    return (
        environment.get_template("page.html").render(
            page=page,
            version=__version__,
            gap_px=GAP_PX,
            overlay={
                "neutral": NEUTRAL,
                "opaque_per_step": MOST_OPAQUE / STRONGEST,
                "raised": list(RAISED),
                "lowered": list(LOWERED),
            },
            has_cubes=has_cubes,
            most_rows_beside=MOST_ROWS_BESIDE,
        )
        + "\n"
    )


def _described(svg: str, alternative: str) -> Markup:
    """A drawing with the words for one who does not see it."""
    # Names of scans and files in a drawing were escaped when it was drawn.
    return Markup(svg.replace('role="img"', f'role="img" aria-label="{escape(alternative)}"', 1))  # noqa: S704


def _breakable(words: str) -> Markup:
    """A name that may be broken after _ and =, and has no break in it when it is copied."""
    return Markup(str(escape(words)).replace("_", "_<wbr>").replace("=", "=<wbr>"))  # noqa: S704


def _cell(words: str) -> Markup | str:
    """A cell of a table."""
    if not isinstance(words, Uid):
        return _breakable(words)
    short = len(words) <= 2 * UID_END
    shown = escape(words) if short else Markup('<span title="{}">…{}</span>').format(words, words[-UID_END:])
    return Markup('<a href="{}">{}</a>').format(words.page, shown) if words.page else shown


def _with_commands(words: str) -> Markup:
    """A paragraph whose commands and options are set as such, and never broken at a hyphen."""

    def as_code(found: re.Match[str]) -> str:
        return f"<code>{' '.join(f'<span>{word}</span>' for word in found[0].split())}</code>"

    return Markup(_COMMAND.sub(as_code, str(escape(words))))  # noqa: S704


def _runs(blocks: Iterable[Block]) -> list[tuple[str, list[Block]]]:
    """Blocks of a kind that follow each other, together: figures stand side by side."""

    def kind(block: Block) -> str:
        return "figure" if isinstance(block, Table) and block.beside_figures else block.kind

    return [(name, list(run)) for name, run in groupby(blocks, key=kind)]
