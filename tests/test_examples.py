"""Whatever the documentation tells to type is typed: page by page, from top to bottom, each in a folder.

Names that stand for something of the reader's (`LUNA16`, `scan.mhd`) are those of `stand_ins`. Trainings,
phantoms and bootstraps are cut short; all else is as it stands. A page states another exit status than 0 by
a mark behind the fence's language: `{ .exit-3 }`.
"""

import functools
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from pages import pages
from scipy.special import expit
from stand_ins import MAKERS, StandIns
from typer.main import get_command
from typer.testing import CliRunner

from luna_cls.cli import app
from luna_cls.cubes.preparation import prepare
from luna_cls.errors import InputError
from luna_cls.scans.proposals import propose
from luna_cls.settings import load_settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`"),
]

COMMANDS = get_command(app).commands
OUTPUTS = {  # what a command calls the folder that it makes
    **dict.fromkeys(["demo", "phantom", "crossval", "compare", "predict", "export", "evaluate"], "out"),
    "prepare": "store",
    "train": "run",
}
SHORT = {
    "training.epochs": 1,
    "training.steps_per_epoch": 1,
    "training.profile_steps": "null",
    "precision": "float32",
    "optimizer.warmup_steps": 0,
}
NARROW = {"seed_cnn": {"filters": [2, 2], "dense_units": 4}, "resnet": {"filters": [2, 2]}}
NARROW["contextual"] = NARROW["seed_cnn"]
RESAMPLES, PROPOSALS = 20, 20


@pytest.fixture(scope="module", autouse=True)
def little_work():
    """TensorFlow runs functions as they stand: their graphs would take most of so short a training."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """What the names in examples stand for."""
    return StandIns(tmp_path_factory.mktemp("stand_ins"), lambda folder, words: _run(folder, list(words)))


@pytest.mark.parametrize("page", [page for page in pages() if page.examples], ids=str)
def test_what_a_page_tells_to_type_does_what_it_says(page, stand_ins, tmp_path, monkeypatch):
    """Each line of `luna-cls` ends with 0, or the status that the page states; Python examples run."""
    monkeypatch.setattr("luna_cls.scans.phantom.write_phantom", stand_ins.write_phantom)
    monkeypatch.setattr("luna_cls.demo.write_phantom", stand_ins.write_phantom)
    monkeypatch.setattr(
        "luna_cls.demo.load_settings", lambda recipe: load_settings(recipe, _short(recipe, []))
    )
    monkeypatch.setattr("luna_cls.demo.prepare", functools.partial(prepare, workers=1))
    monkeypatch.setattr(propose, "__defaults__", (None, PROPOSALS))
    monkeypatch.chdir(tmp_path)
    folder, names = Folder(tmp_path, stand_ins), {"__name__": "__main__"}

    for fence in page.examples:
        if fence.language == "python":
            folder.offer(re.findall(r"""["']([\w./]+)["']""", fence.text))
            os.chdir(tmp_path)  # a stand-in is made in a folder of its own
            exec(compile(fence.text, str(page), "exec"), names)  # noqa: S102
        for words in fence.luna_commands:
            output = folder.make_way(words)
            folder.offer(word for word in words[1:] if word != output)
            _run(tmp_path, folder.of_fewer_folds(words), fence.status)


class Folder:
    """Where a page is run, with the stand-ins that it has read so far."""

    def __init__(self, path, stand_ins):
        self.path, self.stand_ins, self.offered = path, stand_ins, set()

    def offer(self, words):
        """Puts what the words name, and is not there, in its place."""
        for word in words:
            name = word.split("/")[0]
            if name in MAKERS and not (self.path / name).exists():
                self.stand_ins.put(name, self.path)
                self.offered.add(name)

    def make_way(self, words):
        """Takes away a stand-in where a command is about to make the page's own, whose name it returns."""
        output = str(_parsed(words).get(OUTPUTS.get(words[0])))
        if output in self.offered:
            shutil.rmtree(self.path / output)
            self.offered.remove(output)
        return output

    def of_fewer_folds(self, words):
        """A cross-validation of a store of three folds, in place of one of ten."""
        if words[0] != "crossval":
            return words
        few = self.path / "of_three_folds"
        if not few.exists():
            self.stand_ins.put_store_of_three_folds(few)
        return [few.name if word == str(_parsed(words)["store"]) else word for word in words]


def _parsed(words):
    """The arguments and options of a command line, by name; none of one without a command."""
    if words[0] not in COMMANDS:
        return {}
    return COMMANDS[words[0]].make_context(words[0], words[1:], resilient_parsing=True).params


def _run(folder, words, status=0):
    """Runs `luna-cls` with these words in a folder, cut short; a command answers in one JSON object."""
    os.chdir(folder)
    if words[0] == "calibrate" and status == 0:
        _let_it_rank(Path(words[1]) / "validation_predictions.csv")
    tells = words[0] in COMMANDS and "--help" not in words
    done = CliRunner().invoke(app, [*_cut_short(words), *["--json"] * tells], prog_name="luna-cls")
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, f"luna-cls {' '.join(words)}\n{done.output}"
    if tells and status in (0, 3):
        told = json.loads(done.stdout, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
        assert (told["command"], told["status"]) == (words[0], status)


def _let_it_rank(predictions):
    """Lifts a run's logits of nodules: so short a training teaches nothing that could be calibrated."""
    if predictions.is_file():
        table = pd.read_csv(predictions)
        table["logit"] += 3 * table["class"]
        table["probability"] = expit(table["logit"])
        table.to_csv(predictions, index=False)


def _cut_short(words):
    """A command line that does the same in little time."""
    if "--help" in words:
        return words
    command, given = words[0], _parsed(words)
    if command == "prepare":
        return [*_without(words, "--workers"), "--workers", "1"]
    if command == "evaluate":
        return [*_without(words, "--resamples"), "--resamples", str(min(given["resamples"], RESAMPLES))]
    if command not in ("train", "crossval", "compare"):
        return words
    words = _without(words, "--workers")
    changes, out = given["setting"] or [], Path(given[OUTPUTS[command]])
    loss = given["loss"] if command != "compare" else None
    if given["resume"] and out.exists() and not (given["recipe"] or changes or loss):
        return words  # it goes on with settings of its own, which were cut short
    recipe, changes = given["recipe"] or "seed", [*changes, *([f"loss.name={loss}"] if loss else [])]
    if command == "compare":
        folds = [group for group in given["folds"] or ["8,9"] if group != "each"] or ["8,9"]
        if given["folds"] or not load_settings(recipe, changes).split.test_folds:
            words = [*_without(words, "--folds"), "--folds", folds[0]]
        words = [*_without(words, "--seeds"), "--seeds", "1"]
    return [*words, *(word for change in _short(recipe, changes) for word in ("--set", change))]


def _without(words, option):
    """A command line without an option that takes a value."""
    places = [place for place, word in enumerate(words) if word == option]
    return [word for place, word in enumerate(words) if place not in places and place - 1 not in places]


def _short(recipe, changes):
    """What to change of settings for the least of trainings."""
    try:
        settings = load_settings(recipe, changes)
    except InputError:
        return []  # as the page means to show
    short = {**SHORT, **{f"model.{key}": value for key, value in NARROW[settings.model.name].items()}}
    if settings.sampling.positives_per_batch:
        short["sampling.positives_per_batch"] = 2
    short["training.batch_size"] = 8
    return [f"{key}={value}" for key, value in short.items()]
