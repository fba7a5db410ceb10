"""What a shell completes, besides paths.

A shell waits for every answer: names are written here that stand in modules which take seconds to load, and
a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

LOSSES = ("bce", "mse", "focal", "cefl", "cefl2", "anyloss", "sol")
MODELS = ("seed_cnn", "resnet", "contextual")
METHODS = ("platt", "temperature", "beta", "isotonic", "prior_shift")
METRICS = ("cpm", "auc", "average_precision", "balanced_accuracy")
FORMATS = ("json", "slicer", "nifti", "sr", "html")
SYMMETRIES = ("none", "in_plane", "cube")


def _one_of(names: tuple[str, ...]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


losses = _one_of(LOSSES)
methods = _one_of(METHODS)
metrics = _one_of(METRICS)
symmetries = _one_of(SYMMETRIES)
calibrations = _one_of(("none",))
trained = _one_of(("phantom",))
tested = _one_of(("each",))


def recipes(incomplete: str) -> list[str]:
    """Recipes that come with the package."""
    from luna_cls.settings import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


def formats(incomplete: str) -> list[str]:
    """One more format behind those that stand there already, as in json,sl."""
    before, comma, begun = incomplete.rpartition(",")
    listed = before.split(",")
    names = [*FORMATS, *(() if comma else ("none",))]
    return [f"{before}{comma}{name}" for name in names if name.startswith(begun) and name not in listed]


def settings(incomplete: str) -> list[str]:
    """Keys of settings, with the equals sign; behind that the values, where they have names."""
    key, equals, begun = incomplete.partition("=")
    known = _keys()
    if not equals:
        return [f"{name}=" for name in known if name.startswith(key)]
    return [f"{key}={value}" for value in known.get(key, ()) if value.startswith(begun)]


def _keys() -> dict[str, tuple[str, ...]]:
    """Every setting's key, with the names its value may have, if it has such."""
    from luna_cls.settings import Settings

    keys: dict[str, tuple[str, ...]] = {}
    for name, entry in Settings.model_fields.items():
        below = getattr(entry.annotation, "model_fields", None)
        if below is None:
            keys[name] = _names(entry.annotation)
        else:
            keys.update({f"{name}.{inner}": _names(own.annotation) for inner, own in below.items()})
    return {**keys, "loss.name": LOSSES, "model.name": MODELS}


def _names(annotation: Any) -> tuple[str, ...]:
    if annotation is bool:
        return ("true", "false")
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(name for part in get_args(annotation) for name in _names(part))
