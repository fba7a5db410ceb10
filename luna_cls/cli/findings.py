"""Commands that use a model on new scans, or hand it on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from luna_cls.cli import completion
from luna_cls.cli.app import DONE, Answer, command
from luna_cls.cli.console import complain, progress, say, show_path
from luna_cls.cli.endings import add_report, status_of
from luna_cls.cli.options import Force
from luna_cls.errors import InputError
from luna_cls.startup import load_tensorflow_quietly

_GROUP = "New scans"


@command(
    _GROUP,
    [
        "luna-cls predict run scan.mhd --out findings",
        "luna-cls predict phantom dicom/ --out findings --formats json,sr,html",
        "luna-cls predict run scans/ --out findings --resume",
    ],
)
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            help="A run, its model.keras, or a bundle; a cross-validation, for all its models together; or "
            "'phantom', which comes with luna_cls.",
            autocompletion=completion.trained,
        ),
    ],
    scans: Annotated[
        list[Path],
        typer.Argument(
            help="Scan files (.mhd, .nrrd, .nii.gz, ...), folders of these or of DICOM, or CSVs with a "
            "column path."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to make.")],
    candidates: Annotated[
        Path | None,
        typer.Option(
            help="CSV: seriesuid,coordX,coordY,coordZ.", show_default="up to 600 points found in the lungs"
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            help="Files of each scan, beside findings.csv: json, slicer (3D Slicer markups), nifti (on the "
            "scan's grid), sr (DICOM), html (a page with pictures); or none.",
            autocompletion=completion.formats,
        ),
    ] = "json,slicer",
    threshold: Annotated[
        float | None,
        typer.Option(
            help="The probability from which findings are marked in these.",
            show_default="the model's operating point, or 0.5",
        ),
    ] = None,
    most: Annotated[int, typer.Option(help="Mark at most so many in a scan.")] = 20,
    merge: Annotated[
        float | None,
        typer.Option(metavar="MM", help="Make one of findings so near each other.", show_default="none"),
    ] = None,
    diameters: Annotated[
        bool, typer.Option("--diameters", help="Estimate the size of what is marked.")
    ] = False,
    explain: Annotated[
        int, typer.Option(metavar="N", help="Show what raised the probability, for the first N marked.")
    ] = 0,
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="What calibrate made for this model; 'none' for its logits as they are.",
            autocompletion=completion.calibrations,
            show_default="calibration.json beside MODEL, if there",
        ),
    ] = None,
    ensemble: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="MODEL", help="One more model, averaged with the first in logit space; may be repeated."
        ),
    ] = None,
    symmetries: Annotated[
        str,
        typer.Option(
            help="Average over ways to mirror and turn a cube: none, in_plane (16), cube (48).",
            autocompletion=completion.symmetries,
        ),
    ] = "none",
    dask: Annotated[
        str | None, typer.Option(help="A Dask scheduler, as tcp://HOST:8786, whose workers read the scans.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with OUT: scans that are done, and the same, stay.")
    ] = False,
    force: Force = False,
) -> Answer:
    """Give every candidate in some scans the probability that it is a nodule.

    Each scan has a folder of its own in OUT/scans as soon as it is done.
    Stopped at any moment, --resume goes on, also with more scans.
    """
    load_tensorflow_quietly()
    from luna_cls.inference.options import Options
    from luna_cls.inference.predictor import predict as predict_scans
    from luna_cls.reports.blocks import plural
    from luna_cls.reports.page import write_scan_report

    options = Options(
        calibration=calibration,
        ensemble=tuple(ensemble or ()),
        symmetries=symmetries,
        merge_mm=merge,
        threshold=threshold,
        most=most,
        diameters=diameters,
        explain=explain,
        formats=tuple(
            name for name in formats.replace(" ", "").split(",") if name not in ("", "csv", "none")
        ),
    )
    try:
        with progress("Reading scans", each="scan") as on_progress:
            made = predict_scans(
                model,
                scans,
                candidates,
                out,
                options,
                force=force,
                resume=resume,
                dask=dask,
                write_page=write_scan_report,
                on_progress=on_progress,
            )
    except KeyboardInterrupt:
        if (out / "prediction.json").is_file() and not (out / "findings.csv").is_file():
            complain("The same command with --resume goes on with the scans that are not done yet.")
        raise
    calibrations = sorted({name for name in made.calibrations if name})
    if calibrations:
        say(f"Calibrated by {', '.join(calibrations)}; --calibration none leaves that off")
    if calibrations and None in made.calibrations:
        say("Warning: some of the models are not calibrated: a mean of both kinds of logits says little.")
    counts = f"{plural(made.num_findings, 'finding')} in {plural(made.num_scans, 'scan')}"
    say(f"{counts}, marked from {made.threshold:.3g}")
    show_path("findings", out / "findings.csv")
    add_report(out, scans=scans)
    told = {
        "scans": made.num_scans,
        "findings": made.num_findings,
        "threshold": made.threshold,
        "calibrations": made.calibrations,
        "failures": len(made.failures),
    }
    return status_of(out, len(made.failures)), told


@command(
    _GROUP,
    [
        "luna-cls export run --out model.zip --licence CC-BY-4.0",
        "luna-cls export run --out model.onnx --format onnx",
    ],
)
def export(
    model: Annotated[
        Path, typer.Argument(help="A run; for other formats than bundle also whatever predict takes.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to make; or a .zip file, for a bundle.")],
    to: Annotated[
        Literal["bundle", "savedmodel", "onnx", "openvino"],
        typer.Option("--format", help="bundle: for luna_cls elsewhere; the others for other programs."),
    ] = "bundle",
    name: Annotated[
        str | None, typer.Option(help="What to call a bundle.", show_default="the run's folder")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Under which others may use a bundle.", show_default="not stated")
    ] = None,
    force: Force = False,
) -> Answer:
    """Make of a model what others can use: a bundle that says what it is, or another format.

    Other formats are written once what they compute equals what Keras does on 64
    cubes, to 0.0001.
    """
    if to == "bundle":
        from luna_cls.inference.bundle import write_bundle

        show_path("model", write_bundle(model, out, name=name, licence=licence, force=force))
        return DONE, {"format": to}
    if name is not None or licence is not None:
        raise InputError(f"--name and --licence are for bundles. Received: --format {to}.")
    load_tensorflow_quietly()
    from luna_cls.inference.bundle import open_bundles
    from luna_cls.inference.conversion import export as convert

    bundles = open_bundles(model)
    if len(bundles) > 1:
        raise InputError(f"{model} holds {len(bundles)} models. Export them one by one.")
    difference = convert(bundles[0], out, to, force=force)
    say(f"Logits differ from Keras' by {difference:.1g} at most, on 64 cubes")
    show_path("model", out)
    return DONE, {"format": to, "largest_difference_of_logits": difference}
