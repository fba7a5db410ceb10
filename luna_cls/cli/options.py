"""Options that commands share, written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from luna_cls.cli import completion

_SPOKEN = "Output"

Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress, no notes: only warnings.", rich_help_panel=_SPOKEN),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Also versions, devices, seconds, and the traceback behind an error.",
        rich_help_panel=_SPOKEN,
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON object in place of tables and paths.",
        rich_help_panel=_SPOKEN,
    ),
]

Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes.", show_default="one per core")]
Margin = Annotated[int, typer.Option(help="Voxels kept around each cube, to shift and turn it within.")]
Recipe = Annotated[
    str | None,
    typer.Option(
        help="A recipe's name, or a TOML file.", show_default="seed", autocompletion=completion.recipes
    ),
]
Loss = Annotated[
    str | None, typer.Option(help="Short for --set loss.name=NAME.", autocompletion=completion.losses)
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Change a setting; may be repeated.",
        autocompletion=completion.settings,
    ),
]
Annotations = Annotated[
    Path | None, typer.Option(help="CSV of the nodules, with diameter_mm, for FROC and CPM.")
]
Excluded = Annotated[Path | None, typer.Option(help="CSV of findings to ignore.")]
Dask = Annotated[
    str | None, typer.Option(help="A Dask scheduler, as tcp://HOST:8786, whose workers do the work.")
]
Points = Annotated[
    Path | None, typer.Option(help="CSV of labelled points.", show_default="LUNA_DIR's candidates_V2.csv")
]
CubeType = Annotated[Literal["int16", "uint8"], typer.Option(help="int16: HU. uint8: half the room.")]
