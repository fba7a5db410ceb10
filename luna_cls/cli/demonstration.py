"""Commands to try it with: no data is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luna_cls.cli.app import DONE, Answer, command
from luna_cls.cli.console import keep_path, progress, say, show_path, stdout
from luna_cls.cli.options import Force, Workers

_GROUP = "Without data of your own"


@command(
    _GROUP,
    [
        "luna-cls demo",
        "luna-cls demo --out /tmp/demo --force",
    ],
)
def demo(
    out: Annotated[Path, typer.Option(help="The folder to make.")] = Path("runs/demo"),
    force: Force = False,
) -> Answer:
    """Run the whole path on a synthetic data set: scans, cubes, training, findings, scores."""
    from luna_cls import demo as demonstration
    from luna_cls.reports.terminal import print_metrics

    shown = demonstration.run(out, force=force, say=say, progress=progress)
    result = shown.result
    print_metrics(
        stdout,
        f"{result['froc']['num_scans']} test scans, {result['froc']['num_nodules']} nodules, "
        f"{result['metrics']['tp'] + result['metrics']['fn']} candidates in them",
        result["metrics"],
        result["no_skill"],
        result["froc"]["cpm"],
    )
    for name, path in shown.paths.items():
        keep_path(name, path)
        stdout.print(f"{name:10}  {path}", markup=False)
    stdout.print(f"watch it    tensorboard --logdir {shown.paths['run'] / 'tensorboard'}", markup=False)
    return DONE, result


@command(
    _GROUP,
    [
        "luna-cls phantom phantom --scans 20 --preview",
        "luna-cls phantom phantom --scans 100 --seed 7 --imbalance 40 --force",
    ],
)
def phantom(
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    scans: Annotated[int, typer.Option(help="How many scans.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.", min=0)] = 0,
    imbalance: Annotated[
        int, typer.Option(help="Candidates on no nodule for each that is on one. LUNA16 has 484.", min=1)
    ] = 100,
    nodules: Annotated[
        int | None, typer.Option(help="Nodules in each scan.", show_default="0 to 12, as LUNA16", min=0)
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="512 x 512 pixels and up to 320 slices, as LUNA16; else 400, 130.")
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Draw OUT/preview_scans.png and OUT/preview_candidates.png.")
    ] = False,
    workers: Workers = None,
    force: Force = False,
) -> Answer:
    """Make synthetic chest CTs with nodules and look-alikes, laid out as LUNA16."""
    from luna_cls.scans.phantom import Acquisition, write_phantom

    with progress("Making scans") as on_progress:
        made = write_phantom(
            out,
            scans,
            seed,
            imbalance=imbalance,
            num_nodules=nodules,
            workers=workers,
            force=force,
            progress=on_progress,
            acquisition=Acquisition.full() if full else None,
        )
    say(f"{made.num_on_nodules:,} candidates on nodules, {made.num_others:,} on none")
    if made.num_others < imbalance * made.num_on_nodules:
        say(f"These are all the scans have: fewer than {imbalance} for each on a nodule.")
    if preview:
        from luna_cls.reports.contact_sheet import write_cube_sheet, write_scan_sheet
        from luna_cls.scans.luna16 import LunaTree

        tree = LunaTree.open(out)
        candidates = tree.candidates()
        write_scan_sheet(tree, candidates, out / "preview_scans.png")
        write_cube_sheet(tree, candidates, out / "preview_candidates.png")
        show_path("preview_scans", out / "preview_scans.png")
        keep_path("preview_candidates", out / "preview_candidates.png")
    show_path("tree", out)
    return DONE, {
        "scans": scans,
        "candidates_on_nodules": made.num_on_nodules,
        "candidates_on_none": made.num_others,
    }
