"""The folder of a run: what it was begun with, and whether it may be gone on with."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from luna_cls import __version__
from luna_cls.cubes.plan import Plan
from luna_cls.cubes.store import OK, CubeStore
from luna_cls.errors import InputError
from luna_cls.files import alone_in, is_empty, require_new, write_json, write_text
from luna_cls.learning import checkpoints
from luna_cls.learning.checkpoints import Checkpoint
from luna_cls.processes import available_cores
from luna_cls.settings import Settings, load_settings

SETTINGS, ENVIRONMENT, CHECKPOINTS, METRICS = (
    "settings.toml",
    "environment.json",
    "checkpoint",
    "metrics.json",
)


def check(run: Path, store: CubeStore, settings: Settings, *, force: bool, resume: bool) -> bool:
    """Whether `run` was begun before and is to be gone on with; writes nothing.

    Raises:
        InputError: If it exists and is not to be replaced or resumed, or if it is to be resumed and was begun
            with other settings or cubes.
    """
    is_begun = (run / SETTINGS).is_file() and not force
    if is_begun and resume:
        settings.check_begun_with(load_settings(str(run / SETTINGS)), run)
        began = _began(run)
        if began:
            store.check_begun_with(began["store"]["checksum"], run)
    elif is_begun and not (run / METRICS).is_file():
        raise InputError(
            f"{run} is an unfinished run. Pass --resume to go on with it, --force to start it over, or "
            "choose another path."
        )
    elif not (resume and is_empty(run)):
        require_new(run, force=force, sign=SETTINGS, inputs=[store.path])
    return is_begun


@contextmanager
def alone(run: Path) -> Iterator[None]:
    """Keeps a second training out of the folder in the block.

    Raises:
        InputError: If another is at work in it.
    """
    taken = f"Another training is at work in {run}. Let it end, or stop it, before you go on with it."
    with alone_in(run, taken):
        yield


def open_run(
    run: Path, settings: Settings, environment: dict[str, Any], say: Callable[[str], None]
) -> Checkpoint | None:
    """Writes what a new run begins with, or finds where the training of an old one stands.

    Args:
        run: The folder, made already.
        settings: Those of the run.
        environment: What `describe` says.
        say: Told of what may change the last digits, and of damaged checkpoints.

    Returns:
        Where to go on; None for the beginning.

    Raises:
        InputError: If what was begun there was begun on another backend or in another precision.
    """
    if not (run / SETTINGS).is_file():
        write_text(run / SETTINGS, settings.to_toml())
    _compare(run, environment, say)
    start = checkpoints.newest(run / CHECKPOINTS, say)
    if start is None:
        write_json(run / ENVIRONMENT, environment)
    return start


def describe(store: CubeStore, settings: Settings, policy: str, plan: Plan) -> dict[str, Any]:
    """What may change a result beside the settings, and what follows from them and the store."""
    backend = keras.backend.backend()
    return {
        "versions": {
            "luna_cls": __version__,
            "commit": _commit(),
            "python": platform.python_version(),
            "keras": keras.__version__,
            backend: version(backend),
            "numpy": np.__version__,
        },
        "backend": backend,
        "dtype_policy": policy,
        "devices": devices(),
        "threads": {
            "cores": available_cores(),
            "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "as it comes"),
        },
        "seed": settings.seed,
        "store": {"checksum": store.checksum, "rows": len(store.candidates)},
        "data": _data(store),
        "sampling": {
            "steps_per_epoch": plan.steps,
            "cubes_per_epoch": plan.cubes_per_epoch,
            "positive_share": plan.positive_share,
            "visits_per_epoch": dict(zip(("class_0", "class_1"), plan.visits_per_epoch, strict=True)),
            "natural_weight": dict(zip(("class_0", "class_1"), plan.natural_weights, strict=True)),
            "prior_shift": plan.prior_shift,
        },
    }


def _data(store: CubeStore) -> dict[str, Any]:
    """What a model's card tells of the cubes: how they are cut, and of what there is a cube."""
    usable = store.candidates[store.candidates["status"] == OK]
    return {
        "cube_spec": asdict(store.spec),
        "scans": int(usable["seriesuid"].nunique()),
        "candidates": len(usable),
        "nodules": int(usable["class"].sum()),
        "folds": sorted(int(fold) for fold in usable["fold"].unique()),
    }


def _commit() -> str | None:
    """That of the checkout this code runs from, with "-dirty" if it was changed since; None if from none."""
    package = Path(__file__).parents[1]
    if not (package.parent / ".git").exists():
        return None
    command = ["git", "-C", str(package), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def devices() -> list[str]:
    """What Keras computes on: the GPUs where there are some, else the processors."""
    names = keras.distribution.list_devices()
    return [name for name in names if not name.startswith("cpu")] or names


def _compare(run: Path, environment: dict[str, Any], say: Callable[[str], None]) -> None:
    began = _began(run)
    if not began:
        return
    for key in ("backend", "dtype_policy"):
        if began[key] != environment[key]:
            raise InputError(
                f"{run} was begun with {key} {began[key]}; here it is {environment[key]}. Go on where it is "
                "the same, or start the run over with --force."
            )
    changed = [
        f"{key} {began.get(group, {}).get(key)}, now {value}"
        for group in ("versions", "threads")
        for key, value in environment[group].items()
        if began.get(group, {}).get(key) != value
    ]
    if began["devices"] != environment["devices"]:
        changed.append(f"devices {', '.join(began['devices'])}, now {', '.join(environment['devices'])}")
    if changed:
        say(f"Warning: this run was begun with {'; '.join(changed)}. Its last digits may differ.")


def _began(run: Path) -> dict[str, Any]:
    """The environment in which a run was begun; empty if it was killed before it could tell."""
    path = run / ENVIRONMENT
    if not path.is_file():
        return {}
    try:
        began: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}. Start the run over with --force.") from error
    return began
