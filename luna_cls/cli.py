"""The front door: each command parses, calls one function and prints where the result is.

Results go to standard output, progress and messages to standard error. Whatever is slow to import is
imported inside its command, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import math
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from luna_cls import __version__
from luna_cls.errors import InputError

if TYPE_CHECKING:
    from luna_cls.learning.contest import Contest
    from luna_cls.settings import Settings

DONE, WRONG_INPUT, SOME_FAILED, INTERRUPTED = 0, 1, 3, 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="For research, not for diagnosis.",
)
_out = Console(soft_wrap=True, highlight=False, emoji=False)
_err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)

Params = ParamSpec("Params")

Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Workers = Annotated[int | None, typer.Option(help="Worker processes.", show_default="one per core")]
Margin = Annotated[int, typer.Option(help="Voxels kept around each cube, to shift and turn it within.")]
Recipe = Annotated[str | None, typer.Option(help="A recipe's name, or a TOML file.", show_default="seed")]
Loss = Annotated[str | None, typer.Option(help="Short for --set loss.name=NAME.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change a setting; may be repeated.")
]
Annotations = Annotated[
    Path | None, typer.Option(help="CSV of the nodules, with diameter_mm, for FROC and CPM.")
]
Excluded = Annotated[Path | None, typer.Option(help="CSV of findings to ignore.")]
Dask = Annotated[
    str | None, typer.Option(help="A Dask scheduler, as tcp://HOST:8786, whose workers do the work.")
]
CubeType = Annotated[Literal["int16", "uint8"], typer.Option(help="int16: HU. uint8: half the room.")]


def _command(function: Callable[Params, int]) -> Callable[Params, None]:
    """Registers a command; its return value is the exit status, and what a user can cause is one line."""

    @functools.wraps(function)
    def command(*args: Params.args, **kwargs: Params.kwargs) -> None:
        try:
            status = function(*args, **kwargs)
        except InputError as error:
            status = _say_wrong(str(error))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            status = _say_wrong(f"{error.strerror or error}{where}. Check the path, its rights and the disk.")
        except MemoryError:
            status = _say_wrong(
                "Out of memory. Run it again with fewer --workers or --resamples, whichever it has."
            )
        except KeyboardInterrupt:
            _err.print("Interrupted.")
            status = INTERRUPTED
        raise typer.Exit(status)

    return app.command()(command)


def _say_wrong(message: str) -> int:
    _say(f"luna-cls: {' '.join(message.split())}")
    return WRONG_INPUT


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    """Tells lung nodules from look-alikes in chest CT."""
    if version:
        _out.print(f"luna-cls {__version__}")
        raise typer.Exit


@_command
def demo(
    out: Annotated[Path, typer.Option(help="The folder to make.")] = Path("runs/demo"),
    force: Force = False,
) -> int:
    """Run the whole path on a synthetic data set: scans, cubes, training, findings, scores."""
    from luna_cls import demo as demonstration
    from luna_cls.reports.terminal import print_metrics

    shown = demonstration.run(out, force=force, say=_say, progress=_progress)
    result = shown.result
    print_metrics(
        _out,
        f"{result['froc']['num_scans']} test scans, {result['froc']['num_nodules']} nodules, "
        f"{result['metrics']['tp'] + result['metrics']['fn']} candidates in them",
        result["metrics"],
        result["no_skill"],
        result["froc"]["cpm"],
    )
    for name, path in shown.paths.items():
        _out.print(f"{name:10}  {path}", markup=False)
    _out.print(f"watch it    tensorboard --logdir {shown.paths['run'] / 'tensorboard'}", markup=False)
    return DONE


@_command
def phantom(
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    scans: Annotated[int, typer.Option(help="How many scans.")] = 20,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    imbalance: Annotated[
        int, typer.Option(help="Candidates on no nodule for each that is on one. LUNA16 has 484.")
    ] = 100,
    nodules: Annotated[
        int | None, typer.Option(help="Nodules in each scan.", show_default="0 to 12, as LUNA16")
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="512 x 512 pixels and up to 320 slices, as LUNA16; else 400, 130.")
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Draw OUT/preview_scans.png and OUT/preview_candidates.png.")
    ] = False,
    workers: Workers = None,
    force: Force = False,
) -> int:
    """Make synthetic chest CTs with nodules and look-alikes, laid out as LUNA16."""
    from luna_cls.scans.phantom import Acquisition, write_phantom

    with _progress("Making scans") as on_progress:
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
    _say(f"{made.num_on_nodules:,} candidates on nodules, {made.num_others:,} on none")
    if made.num_others < imbalance * made.num_on_nodules:
        _say(f"These are all the scans have: fewer than {imbalance} for each on a nodule.")
    if preview:
        from luna_cls.reports.contact_sheet import write_cube_sheet, write_scan_sheet
        from luna_cls.scans.luna16 import LunaTree

        tree = LunaTree.open(out)
        candidates = tree.candidates()
        write_scan_sheet(tree, candidates, out / "preview_scans.png")
        write_cube_sheet(tree, candidates, out / "preview_candidates.png")
        _print_path(out / "preview_scans.png")
    _print_path(out)
    return DONE


@_command
def audit(
    luna_dir: Annotated[Path, typer.Argument(help="LUNA16: subset0 to subset9, and its CSVs.")],
    candidates: Annotated[
        Path | None,
        typer.Option(help="CSV of labelled points.", show_default="LUNA_DIR's candidates_V2.csv"),
    ] = None,
    margin: Margin = 0,
    dtype: CubeType = "int16",
) -> int:
    """Is this download whole, and what will prepare need? Reads headers and CSVs, no voxels."""
    from luna_cls.cubes.preparation import needs
    from luna_cls.cubes.store import CubeFormat
    from luna_cls.scans.audit import audit as audit_tree

    stored = CubeFormat(margin_vox=margin, dtype=dtype)
    with _progress("Looking at scans") as on_progress:
        found = audit_tree(luna_dir, candidates, on_progress)
    need = needs(list(found.grids.values()), found.num_candidates, stored)
    _out.print(
        f"{len(found.grids):,} scans, {found.data_bytes / 1e9:,.1f} GB; {found.num_candidates:,} candidates"
    )
    minutes = math.ceil(need.worker_seconds / 60)
    _out.print(
        f"prepare will need {need.disk_bytes / 1e9:,.1f} GB of disk, {need.worker_bytes / 1e9:,.1f} GB of "
        f"memory a worker, and some {minutes:,} minutes of work, divided by the workers"
    )
    for note in found.notes:
        _out.print(f"note: {note}", markup=False)
    for fault in found.faults:
        _out.print(f"fault: {fault}", markup=False)
    return WRONG_INPUT if found.faults else DONE


@_command
def prepare(
    luna_dir: Annotated[Path, typer.Argument(help="LUNA16: subset0 to subset9; or any folder of scans.")],
    store: Annotated[Path, typer.Argument(help="The cube store to make.")],
    candidates: Annotated[
        Path | None,
        typer.Option(help="CSV of labelled points.", show_default="LUNA_DIR's candidates_V2.csv"),
    ] = None,
    margin: Margin = 0,
    dtype: CubeType = "int16",
    workers: Workers = None,
    dask: Dask = None,
    force: Force = False,
) -> int:
    """Cut a 31 mm cube around every candidate. Interrupted, the same command goes on."""
    from luna_cls.cubes.preparation import prepare as prepare_store
    from luna_cls.cubes.store import OK, CubeFormat
    from luna_cls.scans.luna16 import LunaTree

    tree = LunaTree.open(luna_dir)
    points = tree.candidates(candidates)
    try:
        with _progress("Cutting cubes") as on_progress:
            made = prepare_store(
                tree,
                points,
                store,
                CubeFormat(margin_vox=margin, dtype=dtype),
                workers=workers,
                dask=dask,
                force=force,
                on_progress=on_progress,
                say=_say,
            )
    except KeyboardInterrupt:
        _say("The same command goes on with the scans that are not done yet.")
        raise
    usable = made.candidates[made.candidates["status"] == OK]
    nodules = int(usable["class"].sum())
    _say(
        f"{len(usable):,} cubes of {usable['seriesuid'].nunique()} scans: "
        f"{nodules:,} nodules, {len(usable) - nodules:,} not"
    )
    _print_path(store)
    return _failed(store, len(made.failures))


@_command
def train(
    store: Annotated[Path, typer.Argument(help="A cube store, as prepare makes it.")],
    run: Annotated[Path, typer.Argument(help="The run folder to make.")],
    recipe: Recipe = None,
    loss: Loss = None,
    val_folds: Annotated[
        str | None, typer.Option(help="Folds to validate on, as 9 or 8,9.", show_default="the recipe's")
    ] = None,
    setting: Changes = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with RUN, if it was begun.")] = False,
    force: Force = False,
) -> int:
    """Train one model on a cube store. Killed or stopped at any moment, --resume goes on with it."""
    from luna_cls.cubes.store import CubeStore
    from luna_cls.processes import termination_watched
    from luna_cls.reports.terminal import print_metrics
    from luna_cls.settings import LAST_EPOCH
    from luna_cls.startup import load_tensorflow_quietly

    overrides = _overrides(setting, loss)
    if val_folds is not None:
        if not re.fullmatch(r"\d(,\d)*", val_folds):
            raise InputError(f"--val-folds takes folds from 0 to 9, as 9 or 8,9. Received: '{val_folds}'.")
        overrides.append(f"split.validation_folds=[{val_folds}]")
    settings = _settings(run / "settings.toml", recipe, overrides, resume=resume, force=force)
    opened = CubeStore.open(store)
    with termination_watched() as asked_to_stop:
        load_tensorflow_quietly()
        from luna_cls.learning.training import train as train_model

        with _live() as show:
            result = train_model(
                opened,
                settings,
                run,
                force=force,
                resume=resume,
                asked_to_stop=asked_to_stop,
                say=_say,
                show=show,
            )
    if result is None:
        return DONE
    kept = "the last" if result["monitor"] == LAST_EPOCH else f"best by {result['monitor']}"
    print_metrics(
        _out,
        f"validation, epoch {result['best_epoch']}, {kept}",
        result["validation"],
        result["no_skill"],
    )
    _print_path(run)
    _add_report(run, store=store)
    return DONE if result["diverged_in"] is None else SOME_FAILED


def _add_report(folder: Path, scans: Iterable[Path] = (), store: Path | None = None) -> None:
    """Writes a report at the end of a command; what the command has made stands, whatever becomes of that."""
    try:
        from luna_cls.cubes.store import CubeStore
        from luna_cls.reports.page import write_report

        opened = CubeStore.open(store) if store else None
        _say(f"Report: {write_report(folder, scans=scans, store=opened)}")
    except Exception as error:
        again = f"luna-cls report {shlex.quote(str(folder))}"
        _say(f"Warning: no report was written ({' '.join(str(error).split())}). Try: {again}")


@_command
def crossval(
    store: Annotated[Path, typer.Argument(help="A cube store, as prepare makes it.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    recipe: Recipe = None,
    loss: Loss = None,
    setting: Changes = None,
    annotations: Annotations = None,
    excluded: Excluded = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Folds at a time, each a process with a GPU and a share of the cores.",
            show_default="one after the other",
        ),
    ] = None,
    dask: Dask = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with OUT, if it was begun.")] = False,
    force: Force = False,
) -> int:
    """Test on every fold in turn with a model that has not seen it, and pool them all.

    Of the other folds, the next one chooses the epoch whose model is kept; the
    rest train. (LUNA16 says nothing of that choice, and trains on all nine: but a
    score on the fold that chose would flatter.) Each model begins with weights of
    its own: fold K with the recipe's seed + K. Killed or stopped at any moment,
    --resume goes on.
    """
    from luna_cls.cubes.store import CubeStore
    from luna_cls.learning.crossvalidation import crossvalidate
    from luna_cls.processes import termination_watched

    overrides = _overrides(setting, loss)
    if any(override.startswith("split.") for override in overrides):
        raise InputError("crossval tests on every fold in turn: leave --set split... off, or use train.")
    settings = _settings(out / "crossval.toml", recipe, overrides, resume=resume, force=force)
    opened = CubeStore.open(store)
    with termination_watched(interrupts=True) as asked_to_stop:
        result = crossvalidate(
            opened,
            settings,
            out,
            annotations=annotations,
            excluded=excluded,
            workers=workers,
            dask=dask,
            force=force,
            resume=resume,
            asked_to_stop=asked_to_stop,
            say=_say,
        )
    return DONE if result is None else _show_crossval(out, result)


def _show_crossval(out: Path, result: dict[str, Any]) -> int:
    from luna_cls.reports.terminal import print_folds, print_froc, print_metrics

    pooled, missing = len(result["pooled_folds"]), ", ".join(map(str, result["missing_folds"]))
    count = f"{pooled} of {pooled + len(result['missing_folds'])}" if missing else f"all {pooled}"
    froc = result.get("froc")
    print_folds(_out, result)
    print_metrics(
        _out,
        f"{count} folds, each by a model that has not seen it" + (f"; {missing} failed" if missing else ""),
        result["metrics"],
        result["no_skill"],
        froc["cpm"] if froc else None,
    )
    if froc:
        print_froc(_out, froc)
        for warning in result["warnings"]:
            _say(f"Warning: {warning}")
        _add_report(out / "evaluation")
    elif missing:
        _say(f"No CPM: folds {missing} are missing, and their nodules with them.")
    else:
        submission, uids, scores = (
            shlex.quote(str(out / name)) for name in ("predictions.csv", "seriesuids.csv", "evaluation")
        )
        _say(
            f"For FROC and CPM: luna-cls evaluate {submission} --annotations ANNOTATIONS.csv "
            f"--excluded ANNOTATIONS_EXCLUDED.csv --seriesuids {uids} --out {scores}"
        )
    _print_path(out)
    if not result["failures"]:
        return DONE
    for fold, status, reason in result["failures"]:
        _say(f"fold {fold}: {status}: {reason}")
    again = " The same command with --resume tries what failed again." if missing else ""
    _say(f"luna-cls: not all folds went well; {out / 'failures.csv'} says which and why.{again}")
    return SOME_FAILED


@_command
def compare(
    store: Annotated[Path, typer.Argument(help="A cube store, as prepare makes it.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    loss: Annotated[
        list[str] | None,
        typer.Option(help="A loss, with its parameters behind it, as focal,gamma=5; give two or more."),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each, begun from other weights.", show_default="3")
    ] = None,
    folds: Annotated[
        list[str] | None,
        typer.Option(
            help="Folds that are tested together, as 5,6,7,8,9; may be repeated. 'each': one by one.",
            show_default="the recipe's test folds; else each",
        ),
    ] = None,
    recipe: Recipe = None,
    setting: Changes = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What decides: cpm, auc, average_precision or balanced_accuracy.",
            show_default="cpm with --annotations; else auc",
        ),
    ] = None,
    tune: Annotated[
        Literal["grid", "halving"] | None,
        typer.Option(
            help="Try four parameters for each loss first: each to the end, or the better half further and "
            "further.",
            show_default="as given",
        ),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="What to try, as focal.gamma=1,2,5; may be repeated.",
            show_default="four values for each loss",
        ),
    ] = None,
    annotations: Annotations = None,
    excluded: Excluded = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Trainings at a time, each a process with a GPU and a share of the cores.",
            show_default="one after the other",
        ),
    ] = None,
    dask: Dask = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with OUT, if it was begun; also with other losses or seeds."),
    ] = False,
    force: Force = False,
) -> int:
    """Which loss? Train with each alike, and say which is better on unseen scans, and how sure that is.

    Models of one seed differ in the loss alone: they begin with the same weights
    and see the same cubes in the same order. Killed or stopped at any moment,
    --resume goes on.
    """
    from luna_cls.cubes.store import CubeStore
    from luna_cls.learning.contest import Contest
    from luna_cls.learning.held_out import Means
    from luna_cls.learning.loss_comparison import SETTINGS, compare_losses, reference_of
    from luna_cls.processes import termination_watched
    from luna_cls.reports.terminal import print_losses

    overrides = _overrides(setting, None)
    named = [change for change in overrides if change.split("=")[0].strip().startswith("loss.")]
    if named:
        raise InputError(
            f"Parameters of a loss go behind its name, as --loss focal,gamma=5. Received: --set {named[0]}."
        )
    if folds and any(change.strip().startswith("split.") for change in overrides):
        raise InputError("--folds says what is tested: leave --set split... off, or --folds.")
    settings = _settings(out / SETTINGS, recipe, overrides, resume=resume, force=force)
    before = Contest.begun(out) if resume else None
    if before is not None:
        begun_annotations, begun_excluded = reference_of(out)
        annotations, excluded = annotations or begun_annotations, excluded or begun_excluded
    contest = _contest(before, loss, seeds, folds, metric, tune, grid)
    opened = CubeStore.open(store)
    with termination_watched(interrupts=True) as asked_to_stop:
        result = compare_losses(
            opened,
            settings,
            contest,
            out,
            annotations=annotations,
            excluded=excluded,
            means=Means(workers, dask, asked_to_stop, _say),
            force=force,
            resume=resume,
        )
    if result is None:
        return DONE
    print_losses(_out, result)
    for warning in result["warnings"]:
        _say(f"Warning: {warning}")
    _print_path(out)
    _add_report(out)
    for name, seed, tested, status, reason in result["failures"]:
        _say(f"{name}, seed {seed}, folds {tested}: {status}: {reason}")
    if not result["failures"]:
        return DONE
    again = " The same command with --resume tries what failed again." if result["missing"] else ""
    _say(f"luna-cls: not all trainings went well; {out / 'failures.csv'} says which and why.{again}")
    return SOME_FAILED


def _contest(
    before: Contest | None,
    loss: list[str] | None,
    seeds: int | None,
    folds: list[str] | None,
    metric: str | None,
    tune: Literal["grid", "halving"] | None,
    grid: list[str] | None,
) -> Contest:
    """What compare was told; where it was told nothing, what was begun before."""
    from luna_cls.learning.contest import EACH, Contest, Entrant
    from luna_cls.learning.tuning import Tuning, parse_grids

    tested = before.tested if before else None
    if folds == [EACH]:
        tested = EACH
    elif folds:
        for group in folds:
            if not re.fullmatch(r"\d(,\d)*", group):
                raise InputError(
                    "--folds takes folds from 0 to 9 that are tested together, as 8,9, or 'each'. "
                    f"Received: '{group}'."
                )
        tested = tuple(tuple(map(int, group.split(","))) for group in folds)
    tuning = before.tuning if before else None
    if tune:
        tuning = Tuning(tune, parse_grids(grid or ()))
    elif grid:
        raise InputError("--grid says what --tune is to try. Add --tune grid or --tune halving.")
    return Contest(
        before.entrants if before and not loss else tuple(map(Entrant.parse, loss or ())),
        seeds if seeds is not None else before.seeds if before else 3,
        tested,
        metric or (before.metric if before else None),
        tuning,
    )


def _overrides(setting: list[str] | None, loss: str | None) -> list[str]:
    return [*(setting or []), *([] if loss is None else [f'loss.name="{loss}"'])]


def _settings(own: Path, recipe: str | None, overrides: list[str], *, resume: bool, force: bool) -> Settings:
    """What a command was told; told nothing but to go on, what `own` says it was begun with."""
    from luna_cls.settings import load_settings

    if resume and force:
        raise InputError("--resume goes on with a run, --force starts it over: give one of them.")
    is_as_before = resume and recipe is None and not overrides and own.is_file()
    return load_settings(str(own) if is_as_before else recipe or "seed", overrides)


@_command
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
) -> int:
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
        print_comparison(_out, compared)
        for warning in compared["warnings"]:
            _say(f"Warning: {warning}")
        _print_path(out)
        return DONE
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
        print_metrics(_out, str(predictions[0]), result["metrics"], result["no_skill"], cpm)
    if "froc" in result:
        print_froc(_out, result["froc"])
    if result["points"]:
        print_operating_points(_out, "thresholds chosen on validation, tried here", result["points"])
    for warning in result["warnings"]:
        _say(f"Warning: {warning}")
    _print_path(out)
    return DONE


@_command
def calibrate(
    run: Annotated[Path, typer.Argument(help="A finished run, as train makes it.")],
    method: Annotated[str, typer.Option(help="platt, temperature, beta, isotonic or prior_shift.")] = "platt",
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
) -> int:
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
        print_calibration(_out, made)
    else:
        _say("Nodules are in one validation scan only: what this is worth on other scans cannot be said.")
    print_operating_points(_out, f"thresholds, after {made['method']}", made["points"])
    _print_path(run / calibrated_run.CALIBRATION)
    _print_path(run / calibrated_run.OPERATING_POINTS)
    _add_report(run, store=store)
    return DONE


@_command
def predict(
    model: Annotated[
        Path,
        typer.Argument(
            help="A run, its model.keras, or a bundle; a cross-validation, for all its models together; or "
            "'phantom', which comes with luna_cls."
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
            "scan's grid), sr (DICOM), html (a page with pictures); or none."
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
        str, typer.Option(help="Average over ways to mirror and turn a cube: none, in_plane (16), cube (48).")
    ] = "none",
    dask: Annotated[
        str | None, typer.Option(help="A Dask scheduler, as tcp://HOST:8786, whose workers read the scans.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with OUT: scans that are done, and the same, stay.")
    ] = False,
    force: Force = False,
) -> int:
    """Give every candidate in some scans the probability that it is a nodule.

    Each scan has a folder of its own in OUT/scans as soon as it is done.
    Stopped at any moment, --resume goes on, also with more scans.
    """
    from luna_cls.startup import load_tensorflow_quietly

    load_tensorflow_quietly()
    from luna_cls.inference.options import Options
    from luna_cls.inference.predictor import predict as predict_scans
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
        with _progress("Reading scans", each="scan") as on_progress:
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
            _say("The same command with --resume goes on with the scans that are not done yet.")
        raise
    calibrations = sorted({name for name in made.calibrations if name})
    if calibrations:
        _say(f"Calibrated by {', '.join(calibrations)}; --calibration none leaves that off")
    if calibrations and None in made.calibrations:
        _say("Warning: some of the models are not calibrated: a mean of both kinds of logits says little.")
    _say(f"{made.num_findings:,} findings in {made.num_scans:,} scans, marked from {made.threshold:.3g}")
    _print_path(out / "findings.csv")
    _add_report(out, scans=scans)
    return _failed(out, len(made.failures))


@_command
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
) -> int:
    """Make of a model what others can use: a bundle that says what it is, or another format.

    Other formats are written once what they compute equals what Keras does on 64
    cubes, to 0.0001.
    """
    if to == "bundle":
        from luna_cls.inference.bundle import write_bundle

        _print_path(write_bundle(model, out, name=name, licence=licence, force=force))
        return DONE
    if name is not None or licence is not None:
        raise InputError(f"--name and --licence are for bundles. Received: --format {to}.")
    from luna_cls.startup import load_tensorflow_quietly

    load_tensorflow_quietly()
    from luna_cls.inference.bundle import open_bundles
    from luna_cls.inference.conversion import export as convert

    bundles = open_bundles(model)
    if len(bundles) > 1:
        raise InputError(f"{model} holds {len(bundles)} models. Export them one by one.")
    difference = convert(bundles[0], out, to, force=force)
    _say(f"Logits differ from Keras' by {difference:.1g} at most, on 64 cubes")
    _print_path(out)
    return DONE


@_command
def report(
    folder: Annotated[Path, typer.Argument(help="A run, an evaluation, a comparison or findings.")],
    scans: Annotated[
        list[Path] | None,
        typer.Option(help="Scans, or folders of them, for pictures; may be repeated.", show_default="none"),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="The cube store of a run, for pictures.", show_default="none")
    ] = None,
) -> int:
    """Write FOLDER/report.html: what its files say, on one page that needs nothing else."""
    from luna_cls.cubes.store import CubeStore
    from luna_cls.reports.page import write_report

    opened = CubeStore.open(store) if store else None
    _print_path(write_report(folder, scans=scans or (), store=opened))
    return DONE


def _failed(folder: Path, count: int) -> int:
    if not count:
        return DONE
    failures = folder / "failures.csv"
    _say(f"luna-cls: not all could be used: {failures} says what and why, in {count} line{'s'[: count > 1]}.")
    return SOME_FAILED


def _print_path(path: Path) -> None:
    _out.print(_printable(str(path)), markup=False)


def _say(line: str) -> None:
    _err.print(_printable(line), markup=False)


def _printable(line: str) -> str:
    """A line without what a name out of a stranger's file could tell a terminal to do."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", line)


@contextmanager
def _live() -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar with the time left and how it goes, on a terminal; nothing elsewhere, where lines must do."""
    if not _err.is_terminal:
        yield None
        return
    columns = (BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)  # until there is something to tell
        yield lambda done, total, how: bar.update(
            task, completed=done, total=total, description=how, visible=True
        )


@contextmanager
def _progress(title: str, each: str = "") -> Iterator[Callable[[int, int], None]]:
    """A progress bar on a terminal; plain lines, at most eleven, where standard error is no terminal.

    Args:
        title: What is done.
        each: What is counted, to tell how many of them go in a minute; empty not to.
    """
    start = time.monotonic()

    def speed(done: int, total: int) -> str:
        minutes = (time.monotonic() - start) / 60
        if not each or not done or not minutes:
            return ""
        return f"{done / minutes:,.0f} {each}s/min, {math.ceil(minutes / done * (total - done))} min left"

    if not _err.is_terminal:
        last = -1

        def print_tenths(done: int, total: int) -> None:
            nonlocal last
            tenth = 10 * done // total if total else 10
            if tenth > last:
                last = tenth
                _say(", ".join(filter(None, [f"{title}: {done} of {total}", speed(done, total)])))

        yield print_tenths
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, *([] if each else [TimeRemainingColumn()]), TextColumn("{task.fields[speed]}"), console=_err
    ) as bar:
        task = bar.add_task(title, total=None, speed="")
        yield lambda done, total: bar.update(task, completed=done, total=total, speed=speed(done, total))
