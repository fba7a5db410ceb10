"""Everything a training run can be told: a frozen tree, TOML recipes, `--set a.b=c`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from luna_cls.errors import InputError

Fold = Annotated[int, Field(ge=0, le=9)]

LAST_EPOCH = "epoch"  # as `training.monitor`: the number of the epoch, so that the last one is kept

_NULL = "null"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Named(BaseModel):
    """A name, with the named thing's own parameters beside it; whoever knows the name checks them."""

    model_config = ConfigDict(frozen=True, extra="allow")

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters beside the name."""
        return dict(self.model_extra or {})


class ModelSettings(_Named):
    """The network and its own parameters (`luna_cls.learning.models.MODELS`)."""

    name: str = "seed_cnn"


class LossSettings(_Named):
    """The loss and its own parameters (`luna_cls.learning.losses.LOSSES`)."""

    name: str = "bce"


class SplitSettings(_Frozen):
    """Which folds are for what; the others are for training."""

    validation_folds: tuple[Fold, ...] = (9,)
    test_folds: tuple[Fold, ...] = ()


class SamplingSettings(_Frozen):
    """How batches are filled: as nodules occur (natural prevalence), unless one of the first two is given.

    `positives_per_batch` nodules in every batch; or `negatives_per_positive` look-alikes for every nodule,
    on the whole. `correct_prior` shifts the logits of the model that is kept by the log odds of that and of
    the loss's weights, so that its probabilities mean natural prevalence again.
    """

    positives_per_batch: int | None = Field(None, ge=1)
    negatives_per_positive: float | None = Field(None, gt=0, allow_inf_nan=False)
    correct_prior: bool = False


class AugmentationSettings(_Frozen):
    """What is done to training cubes at random (`luna_cls.cubes.augmentation`); 0 is nothing.

    `symmetries`: mirrored and turned onto itself, "in_plane" (16 ways, z stays z), "cube" (all 48) or "none".
    Shifted by up to `shift_mm` along each axis, scaled by up to a factor of `1 + scale` either way, turned
    about z by up to `rotation_degrees`: these need a store with a margin (`prepare --margin`). Blurred with
    a Gaussian of up to `blur_mm`; noise of up to `noise_hu` added, and one number of up to `shift_hu`.
    """

    symmetries: Literal["none", "in_plane", "cube"] = "in_plane"
    shift_mm: float = Field(0, ge=0, allow_inf_nan=False)
    scale: float = Field(0, ge=0, le=1)
    rotation_degrees: float = Field(0, ge=0, le=180)
    blur_mm: float = Field(0, ge=0, le=5)
    noise_hu: float = Field(0, ge=0, le=1000)
    shift_hu: float = Field(0, ge=0, le=1000)


class OptimizerSettings(_Frozen):
    """AdamW, and how its learning rate goes.

    `schedule` "exponential": multiplied by `decay_rate` every `decay_steps` steps, at once if `staircase`.
    "cosine": up to `learning_rate` in `warmup_steps`, then down half a cosine to 0 at the training's end.
    `clip_norm`: gradients whose norm, all together, is larger are scaled down to it.
    """

    learning_rate: float = Field(1e-3, gt=0, le=1)
    schedule: Literal["exponential", "cosine"] = "exponential"
    decay_steps: int = Field(100_000, ge=1)
    decay_rate: float = Field(0.96, gt=0, le=1)
    staircase: bool = True
    warmup_steps: int = Field(0, ge=0)
    clip_norm: float | None = Field(None, gt=0, allow_inf_nan=False)
    beta_1: float = Field(0.9, ge=0, lt=1)
    beta_2: float = Field(0.99, ge=0, lt=1)
    epsilon: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.004, ge=0)
    decay_biases_and_normalization: bool = False


class TrainingSettings(_Frozen):
    """How long, how much at a time, and which epoch's model is kept.

    `monitor`: the best by this validation metric, or by "val_loss"; "epoch" keeps the last.
    `ema`: what is validated and kept is the running average of the weights, of which a step keeps this share.
    `profile_steps`: how many steps of the second epoch, or of the only one, TensorFlow's profiler records.
    """

    epochs: int = Field(15, ge=1)
    batch_size: int = Field(128, ge=1)
    steps_per_epoch: int | None = Field(None, ge=1)
    monitor: str = "val_average_precision"
    patience: int | None = Field(None, ge=1)
    ema: float | None = Field(None, gt=0, lt=1)
    profile_steps: int | None = Field(None, ge=1)


class Settings(_Frozen):
    """A training run.

    `distribution`: "mirrored" for all GPUs of a machine (TensorFlow), "multihost" for several machines (JAX).
    """

    seed: int = Field(0, ge=0, le=2**32 - 1)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    distribution: Literal["mirrored", "multihost"] | None = None
    split: SplitSettings = SplitSettings()
    sampling: SamplingSettings = SamplingSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    model: ModelSettings = ModelSettings()
    loss: LossSettings = LossSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    training: TrainingSettings = TrainingSettings()

    def to_toml(self) -> str:
        """The settings as TOML; reading it back gives equal settings."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def flat(self) -> dict[str, Any]:
        """Every setting that is not None, by its key, as `optimizer.learning_rate`."""
        tree = tomllib.loads(self.to_toml())  # as it reads back: lists, not tuples
        flat = {}
        for key, value in tree.items():
            if isinstance(value, dict):
                flat.update({f"{key}.{name}": entry for name, entry in value.items()})
            else:
                flat[key] = value
        return flat

    def differences(self, before: Settings) -> list[str]:
        """What has changed since other settings, key by key: "loss.name was bce, is focal"."""
        old, new = before.flat(), self.flat()
        return [
            f"{key} was {old.get(key)}, is {new.get(key)}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]

    def check_begun_with(self, before: Settings, what: Path) -> None:
        """Refuses to go on with what was begun with other settings.

        Raises:
            InputError: If it was; names what differs.
        """
        differing = self.differences(before)
        if differing:
            raise InputError(
                f"{what} was begun with other settings: {'; '.join(differing)}. To go on with its own, give "
                "--resume alone; or choose another path."
            )


# What has parameters of its own beside its name, and its default.
_NAMES = {("model", "name"): ModelSettings().name, ("loss", "name"): LossSettings().name}


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("luna_cls") / "recipes"
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_settings(recipe: str = "seed", overrides: Iterable[str] = ()) -> Settings:
    """Reads a recipe and applies `a.b=c` overrides, in order, but names first.

    Where another model or loss is named, the recipe's parameters of its own are left behind.

    Args:
        recipe: A recipe's name, or the path of a TOML file.
        overrides: Each `key.path=value`; the value is TOML, or else taken as text. "null" takes the recipe's
            value away.

    Raises:
        InputError: If the recipe is unknown, or a key or value is wrong; lists the right keys.
    """
    tree = _read_recipe(recipe)
    for keys, value in sorted(map(_parse, overrides), key=lambda override: override[0] not in _NAMES):
        branch = tree
        for key in keys[:-1]:
            branch = branch.setdefault(key, {})
            if not isinstance(branch, dict):
                raise InputError(
                    f"--set {'.'.join(keys)}: '{key}' has nothing below it. Received: {value!r}."
                )
        if keys in _NAMES and value != branch.get("name", _NAMES[keys]):
            branch.clear()
        if value is None:
            branch.pop(keys[-1], None)
        else:
            branch[keys[-1]] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise InputError(_in_one_line(error)) from error


def _read_recipe(recipe: str) -> dict[str, Any]:
    if recipe in recipe_names():
        text = (resources.files("luna_cls") / "recipes" / f"{recipe}.toml").read_bytes()
    elif Path(recipe).is_file():
        text = Path(recipe).read_bytes()
    else:
        raise InputError(
            f"No recipe '{recipe}'. Known: {', '.join(recipe_names())}; or give the path of a TOML file."
        )
    try:
        return tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {recipe} is not TOML: {error}.") from error


def _parse(override: str) -> tuple[tuple[str, ...], Any]:
    """The keys of a `key.path=value`, and the value; None for "null"."""
    path, equals, text = override.partition("=")
    keys = tuple(path.strip().split("."))
    if not equals or not all(keys):
        raise InputError(f"--set needs key.path=value. Received: '{override}'.")
    return keys, None if text.strip() == _NULL else parse_value(text.strip())


def parse_value(text: str) -> Any:
    """A value as TOML has it, or else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _in_one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    keys = [str(key) for key in first["loc"]]
    name = ".".join(keys)
    if first["type"] == "extra_forbidden":
        return f"Unknown setting '{name}'. {_known_in(keys[:-1])}"
    if first["type"] == "model_type":
        return f"Setting {name} is a section, not a value. {_known_in(keys)}"
    return f"Setting {name}: {first['msg']}. Received: {first['input']!r}."


def _known_in(keys: list[str]) -> str:
    section: Any = Settings
    for key in keys:
        section = section.model_fields[key].annotation
    return f"Known {'in ' + '.'.join(keys) if keys else 'at the top'}: {', '.join(section.model_fields)}."
