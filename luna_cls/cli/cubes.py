"""Commands from scans to cubes."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from luna_cls.cli.app import DONE, WRONG_INPUT, Answer, command
from luna_cls.cli.console import complain, progress, say, show, show_path, stdout
from luna_cls.cli.endings import status_of
from luna_cls.cli.options import CubeType, Dask, Force, Margin, Points, Workers

_GROUP = "From scans to cubes"


@command(
    _GROUP,
    [
        "luna-cls audit LUNA16",
        "luna-cls audit LUNA16 --margin 8 --dtype uint8",
        "luna-cls audit LUNA16 --json > audit.json",
    ],
)
def audit(
    luna_dir: Annotated[Path, typer.Argument(help="LUNA16: subset0 to subset9, and its CSVs.")],
    candidates: Points = None,
    margin: Margin = 0,
    dtype: CubeType = "int16",
) -> Answer:
    """Is this download whole, and what will prepare need? Reads headers and CSVs, no voxels."""
    from luna_cls.cubes.preparation import needs
    from luna_cls.cubes.store import CubeFormat
    from luna_cls.reports.blocks import plural
    from luna_cls.scans.audit import audit as audit_tree

    stored = CubeFormat(margin_vox=margin, dtype=dtype)
    with progress("Looking at scans") as on_progress:
        found = audit_tree(luna_dir, candidates, on_progress)
    need = needs(list(found.grids.values()), found.num_candidates, stored)
    stdout.print(
        f"{len(found.grids):,} scans, {found.data_bytes / 1e9:,.1f} GB; {found.num_candidates:,} candidates"
    )
    minutes = math.ceil(need.worker_seconds / 60)
    stdout.print(
        f"prepare will need {need.disk_bytes / 1e9:,.1f} GB of disk, {need.worker_bytes / 1e9:,.1f} GB of "
        f"memory a worker, and some {plural(minutes, 'minute')} of work, divided by the workers"
    )
    for note in found.notes:
        show(f"note: {note}")
    for fault in found.faults:
        show(f"fault: {fault}")
    told = {
        "scans": len(found.grids),
        "candidates": found.num_candidates,
        "data_bytes": found.data_bytes,
        "prepare": asdict(need),
        "notes": found.notes,
        "faults": found.faults,
    }
    return WRONG_INPUT if found.faults else DONE, told


@command(
    _GROUP,
    [
        "luna-cls prepare LUNA16 store",
        "luna-cls prepare LUNA16 store --margin 8 --dtype uint8 --workers 8",
        "luna-cls prepare scans store --candidates points.csv",
    ],
)
def prepare(
    luna_dir: Annotated[Path, typer.Argument(help="LUNA16: subset0 to subset9; or any folder of scans.")],
    store: Annotated[Path, typer.Argument(help="The cube store to make.")],
    candidates: Points = None,
    margin: Margin = 0,
    dtype: CubeType = "int16",
    workers: Workers = None,
    dask: Dask = None,
    force: Force = False,
) -> Answer:
    """Cut a 31 mm cube around every candidate. Interrupted, the same command goes on."""
    from luna_cls.cubes.preparation import prepare as prepare_store
    from luna_cls.cubes.store import OK, CubeFormat
    from luna_cls.scans.luna16 import LunaTree

    tree = LunaTree.open(luna_dir)
    points = tree.candidates(candidates)
    try:
        with progress("Cutting cubes") as on_progress:
            made = prepare_store(
                tree,
                points,
                store,
                CubeFormat(margin_vox=margin, dtype=dtype),
                workers=workers,
                dask=dask,
                force=force,
                on_progress=on_progress,
                say=say,
            )
    except KeyboardInterrupt:
        complain("The same command goes on with the scans that are not done yet.")
        raise
    usable = made.candidates[made.candidates["status"] == OK]
    nodules = int(usable["class"].sum())
    num_scans = usable["seriesuid"].nunique()
    say(f"{len(usable):,} cubes of {num_scans} scans: {nodules:,} nodules, {len(usable) - nodules:,} not")
    show_path("store", store)
    told = {
        "cubes": len(usable),
        "scans": num_scans,
        "nodules": nodules,
        "others": len(usable) - nodules,
        "failures": len(made.failures),
    }
    return status_of(store, len(made.failures)), told
