"""Commands that train."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from luna_cls.cli import completion
from luna_cls.cli.app import DONE, SOME_FAILED, Answer, command
from luna_cls.cli.console import complain, live, say, show_path, stdout, warn
from luna_cls.cli.endings import add_report, not_all
from luna_cls.cli.options import Annotations, Changes, Dask, Excluded, Force, Loss, Recipe
from luna_cls.errors import InputError
from luna_cls.startup import load_tensorflow_quietly

if TYPE_CHECKING:
    from luna_cls.learning.contest import Contest
    from luna_cls.settings import Settings

_GROUP = "From cubes to models"


@command(
    _GROUP,
    [
        "luna-cls train store run --val-folds 9",
        "luna-cls train store run --recipe workstation --loss focal --set loss.gamma=2",
        "luna-cls train store run --resume",
    ],
)
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
) -> Answer:
    """Train one model on a cube store. Killed or stopped at any moment, --resume goes on with it."""
    from luna_cls.cubes.store import CubeStore
    from luna_cls.processes import termination_watched
    from luna_cls.reports.terminal import print_metrics
    from luna_cls.settings import LAST_EPOCH

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

        with live() as show:
            result = train_model(
                opened,
                settings,
                run,
                force=force,
                resume=resume,
                asked_to_stop=asked_to_stop,
                say=say,
                show=show,
            )
    if result is None:
        return DONE, None
    kept = "the last" if result["monitor"] == LAST_EPOCH else f"best by {result['monitor']}"
    print_metrics(
        stdout,
        f"validation, epoch {result['best_epoch']}, {kept}",
        result["validation"],
        result["no_skill"],
    )
    show_path("run", run)
    add_report(run, store=store)
    return DONE if result["diverged_in"] is None else SOME_FAILED, result


@command(
    _GROUP,
    [
        "luna-cls crossval store folds --recipe workstation",
        "luna-cls crossval store folds --annotations LUNA16/annotations.csv --workers 2",
        "luna-cls crossval store folds --resume",
    ],
)
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
) -> Answer:
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
            say=say,
        )
    return (DONE, None) if result is None else (_show_crossval(out, result), result)


def _show_crossval(out: Path, result: dict[str, Any]) -> int:
    from luna_cls.reports.terminal import print_folds, print_froc, print_metrics

    pooled, missing = len(result["pooled_folds"]), ", ".join(map(str, result["missing_folds"]))
    count = f"{pooled} of {pooled + len(result['missing_folds'])}" if missing else f"all {pooled}"
    froc = result.get("froc")
    print_folds(stdout, result)
    print_metrics(
        stdout,
        f"{count} folds, each by a model that has not seen it" + (f"; {missing} failed" if missing else ""),
        result["metrics"],
        result["no_skill"],
        froc["cpm"] if froc else None,
    )
    if froc:
        print_froc(stdout, froc)
        warn(result["warnings"])
        add_report(out / "evaluation")
    elif missing:
        say(f"No CPM: folds {missing} are missing, and their nodules with them.")
    else:
        submission, uids, scores = (
            shlex.quote(str(out / name)) for name in ("predictions.csv", "seriesuids.csv", "evaluation")
        )
        say(
            f"For FROC and CPM: luna-cls evaluate {submission} --annotations ANNOTATIONS.csv "
            f"--excluded ANNOTATIONS_EXCLUDED.csv --seriesuids {uids} --out {scores}"
        )
    show_path("crossval", out)
    if not result["failures"]:
        return DONE
    for fold, status, reason in result["failures"]:
        complain(f"fold {fold}: {status}: {reason}")
    return not_all(out, "folds", can_be_tried_again=bool(missing))


@command(
    _GROUP,
    [
        "luna-cls compare store losses --loss bce --loss focal,gamma=2 --seeds 5",
        "luna-cls compare store losses --loss bce --loss cefl --tune halving",
        "luna-cls compare store losses --resume",
    ],
)
def compare(
    store: Annotated[Path, typer.Argument(help="A cube store, as prepare makes it.")],
    out: Annotated[Path, typer.Argument(help="The folder to make.")],
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="A loss, with its parameters behind it, as focal,gamma=5; give two or more.",
            autocompletion=completion.losses,
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each, begun from other weights.", show_default="3")
    ] = None,
    folds: Annotated[
        list[str] | None,
        typer.Option(
            help="Folds that are tested together, as 5,6,7,8,9; may be repeated. 'each': one by one.",
            autocompletion=completion.tested,
            show_default="the recipe's test folds; else each",
        ),
    ] = None,
    recipe: Recipe = None,
    setting: Changes = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="What decides: cpm, auc, average_precision or balanced_accuracy.",
            autocompletion=completion.metrics,
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
) -> Answer:
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
            means=Means(workers, dask, asked_to_stop, say),
            force=force,
            resume=resume,
        )
    if result is None:
        return DONE, None
    print_losses(stdout, result)
    warn(result["warnings"])
    show_path("comparison", out)
    add_report(out)
    for name, seed, tested, status, reason in result["failures"]:
        complain(f"{name}, seed {seed}, folds {tested}: {status}: {reason}")
    if not result["failures"]:
        return DONE, result
    return not_all(out, "trainings", can_be_tried_again=bool(result["missing"])), result


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
