"""Commands that score, and show what is known."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from luna_cls.cli import completion
from luna_cls.cli.app import DONE, Answer, command
from luna_cls.cli.console import keep_path, say, show_path, stdout, warn
from luna_cls.cli.endings import add_report
from luna_cls.cli.options import Excluded, Force
from luna_cls.errors import InputError

_GROUP = "Scores and pages"


@command(
    _GROUP,
    [
        "luna-cls evaluate run --out scores",
        "luna-cls evaluate marks.csv --annotations LUNA16/annotations.csv --out scores",
        "luna-cls evaluate a.csv b.csv --annotations annotations.csv --out a_or_b",
    ],
)
def evaluate(
    predictions: Annotated[
        list[Path],
        typer.Argument(
            help="CSV: seriesuid,coordX,coordY,coordZ,probability; or a run, a cross-validation or a folder "
            "of findings. Two or more are compared."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    annotations: Annotated[
        Path | None,
        typer.Option(
            help="CSV of the nodules, with diameter_mm.", show_default="no FROC; metrics of the column class"
        ),
    ] = None,
    excluded: Excluded = None,
    seriesuids: Annotated[
        Path | None, typer.Option(help="List of all scans read.", show_default="those with predictions")
    ] = None,
    subset: Annotated[
        int | None, typer.Option(help="Score one of LUNA16's subsets, against its own scans only.")
    ] = None,
    subsets: Annotated[
        Path | None, typer.Option(help="LUNA16's folder, or a CSV with seriesuid,subset, for --subset.")
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(help="operating_points.json of a calibrated run, to see what its thresholds do here."),
    ] = None,
    resamples: Annotated[
        int, typer.Option(help="Bootstrap resamples of scans, for intervals; 0 for none.", min=0)
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Same seed, same resamples.", min=0)] = 0,
    scans: Annotated[
        list[Path] | None,
        typer.Option(help="Scans, or folders of them, for pictures of misses and false alarms in the page."),
    ] = None,
    no_report: Annotated[
        bool, typer.Option("--no-report", help="Figures alone: no page, no pictures.")
    ] = False,
    force: Force = False,
) -> Answer:
    """Score predictions as LUNA16 does: FROC and CPM, with intervals, and where they come from."""
    from luna_cls.judging.evaluation import compare_submissions, evaluate_submission
    from luna_cls.judging.submission import Reference
    from luna_cls.reports.terminal import (
        print_comparison,
        print_froc,
        print_metrics,
        print_operating_points,
    )

    reference = Reference(annotations, excluded, seriesuids, subset, subsets)

    def draw(folder: Path) -> None:
        from luna_cls.reports.page import write_evaluation_report

        write_evaluation_report(folder, scans=scans or ())

    finish = None if no_report else draw
    if len(predictions) > 1:
        if thresholds is not None:
            raise InputError("--thresholds are tried on one submission. Give one, or leave --thresholds off.")
        compared = compare_submissions(
            predictions, reference, out, resamples=resamples, seed=seed, finish=finish, force=force
        )
        print_comparison(stdout, compared)
        _end(out, compared, has_report=not no_report)
        return DONE, compared
    result = evaluate_submission(
        predictions[0],
        reference,
        out,
        thresholds=thresholds,
        resamples=resamples,
        seed=seed,
        finish=finish,
        force=force,
    )
    if result["labels"] == "class":
        cpm = result["froc"]["cpm"] if "froc" in result else None
        print_metrics(stdout, str(predictions[0]), result["metrics"], result["no_skill"], cpm)
    if "froc" in result:
        print_froc(stdout, result["froc"])
    if result["points"]:
        print_operating_points(stdout, "thresholds chosen on validation, tried here", result["points"])
    _end(out, result, has_report=not no_report)
    return DONE, result


def _end(out: Path, result: Mapping[str, Any], *, has_report: bool) -> None:
    warn(result["warnings"])
    show_path("evaluation", out)
    if has_report:
        keep_path("report", out / "report.html")


@command(
    _GROUP,
    [
        "luna-cls calibrate run",
        "luna-cls calibrate run --method isotonic --sensitivity 0.95 --fps 0.5 --force",
    ],
)
def calibrate(
    run: Annotated[Path, typer.Argument(help="A finished run, as train makes it.")],
    method: Annotated[
        str,
        typer.Option(
            help="platt, temperature, beta, isotonic or prior_shift.", autocompletion=completion.methods
        ),
    ] = "platt",
    sensitivity: Annotated[
        list[float] | None,
        typer.Option(help="A threshold for this; may be repeated.", show_default="0.9, if no --fps either"),
    ] = None,
    fps: Annotated[
        list[float] | None,
        typer.Option(
            help="A threshold for so many false positives a scan; may be repeated.",
            show_default="1, if no --sensitivity either",
        ),
    ] = None,
    prevalence: Annotated[
        float | None,
        typer.Option(
            help="The share of nodules among candidates where the model is to be used.",
            show_default="that of the validation set",
        ),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="The run's cube store, for pictures in its page, which is made anew.")
    ] = None,
    force: Force = False,
) -> Answer:
    """Make a run's probabilities mean what they say, and choose thresholds, on its validation set.

    Leaves calibration.json and operating_points.json beside the model. predict
    applies the first: its probabilities are then calibrated, in the same order.
    """
    from luna_cls.judging import calibrated_run
    from luna_cls.judging.operating_points import Goal
    from luna_cls.reports.terminal import print_calibration, print_operating_points

    goals = [Goal("sensitivity", value) for value in sensitivity or ()]
    goals += [Goal("fps_per_scan", value) for value in fps or ()]
    made = calibrated_run.calibrate(run, method, goals or calibrated_run.GOALS, prevalence, force=force)
    if made["crossfit"]:
        print_calibration(stdout, made)
    else:
        say("Nodules are in one validation scan only: what this is worth on other scans cannot be said.")
    print_operating_points(stdout, f"thresholds, after {made['method']}", made["points"])
    show_path("calibration", run / calibrated_run.CALIBRATION)
    show_path("operating_points", run / calibrated_run.OPERATING_POINTS)
    add_report(run, store=store)
    return DONE, made


@command(
    _GROUP,
    [
        "luna-cls report run --store store",
        "luna-cls report scores --scans LUNA16/subset9",
    ],
)
def report(
    folder: Annotated[Path, typer.Argument(help="A run, an evaluation, a comparison or findings.")],
    scans: Annotated[
        list[Path] | None,
        typer.Option(help="Scans, or folders of them, for pictures; may be repeated.", show_default="none"),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="The cube store of a run, for pictures.", show_default="none")
    ] = None,
) -> Answer:
    """Write FOLDER/report.html: what its files say, on one page that needs nothing else."""
    from luna_cls.cubes.store import CubeStore
    from luna_cls.reports.page import write_report

    opened = CubeStore.open(store) if store else None
    show_path("report", write_report(folder, scans=scans or (), store=opened))
    return DONE, None
