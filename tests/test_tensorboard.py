"""Two runs, looked at as a browser would: through a TensorBoard server."""

import io
import json
import re
import subprocess
import sys
import time
from html import unescape
from urllib.parse import urlencode
from urllib.request import urlopen

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from matplotlib.image import imread
from sklearn.metrics import precision_recall_curve

from luna_cls.learning.input_wait import InputWait
from luna_cls.learning.tensorboard import precision_recall
from luna_cls.learning.training import train
from luna_cls.settings import load_settings

TINY = (
    "seed=5",
    "precision=float32",
    "split.validation_folds=[3]",
    "model.filters=[2, 4]",
    "model.dense_units=4",
    "training.epochs=2",
    "training.batch_size=8",
    "training.steps_per_epoch=4",
    "training.profile_steps=2",
)


class _Server:
    """A TensorBoard on a free port of this machine, for a `with` block."""

    def __init__(self, logdir):
        self._command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0"]

    def __enter__(self):
        self._process = subprocess.Popen(
            [*self._command, "--host", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
        found = (re.search(r"http://127\.0\.0\.1:\d+", line) for line in self._process.stderr)
        self._url = next(match[0] for match in found if match)
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.communicate()

    def wait_for(self, run, epoch):
        """Until the last epoch has been read in whole: what is written last, too."""
        limit, tag = time.monotonic() + 60, "the_best_epoch/epoch"
        while time.monotonic() < limit:
            if tag in self.json("scalars/tags").get(f"{run}/tensorboard/best", {}):
                points = self.series("scalars/scalars", "best", tag, run)
                if points[-1][1] == epoch:
                    return
            time.sleep(0.2)
        raise TimeoutError(f"TensorBoard has not read epoch {epoch} of {run}")

    def bytes(self, path, **parameters):
        query = f"?{urlencode(parameters)}" if parameters else ""
        url = f"{self._url}/data/plugin/{path}{query}"
        with urlopen(url, timeout=60) as answer:  # noqa: S310, it is http
            return answer.read()

    def json(self, path, **parameters):
        return json.loads(self.bytes(path, **parameters))

    def charts(self, run="first"):
        """Tags by writer."""
        tags = self.json("scalars/tags")
        return {
            writer: set(tags[f"{run}/tensorboard/{writer}"]) for writer in ("train", "validation", "best")
        }

    def series(self, path, writer, tag, run="first"):
        return self.json(path, run=f"{run}/tensorboard/{writer}", tag=tag)

    def points(self, writer, tag, run="first"):
        """Values by step; a step that comes twice is an error."""
        series = self.series("scalars/scalars", writer, tag, run)
        points = {step: float(value) for _, step, value in series}
        assert len(points) == len(series), f"{tag} of {writer} has a step twice: {series}"
        return points


def _quiet(line):
    """Says nothing."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(scope="module")
def first(small_store, folder):
    """A run of two epochs."""
    train(small_store, load_settings("seed", TINY), folder / "first", say=_quiet)
    return folder / "first"


@pytest.fixture(scope="module")
def again(small_store, folder):
    """A run of three epochs with another loss, killed while it wrote its second, which is done again."""
    run, looks = folder / "again", iter(range(100))
    settings = load_settings("seed", [*TINY[:-1], "training.epochs=3", "loss.name=focal"])
    train(small_store, settings, run, asked_to_stop=lambda: next(looks) == 7, say=_quiet)
    max(run.glob("checkpoint/*.npz")).unlink()
    (events,) = run.glob("tensorboard/validation/*tfevents*")
    events.write_bytes(events.read_bytes()[:-100])
    train(small_store, settings, run, resume=True, say=_quiet)
    return run


@pytest.fixture(scope="module")
def server(folder, first, again):
    with _Server(folder) as server:
        server.wait_for("first", epoch=2)
        server.wait_for("again", epoch=3)
        yield server


def _assert_serves_history(server, run):
    """The charts of training and validation hold history.csv: each number at its epoch, once."""
    history = pd.read_csv(run / "history.csv").set_index("epoch")
    charts = server.charts(run.name)
    served = {
        prefix + tag.split("/")[1]: server.points(writer, tag, run.name)
        for writer, prefix in (("train", ""), ("validation", "val_"))
        for tag in charts[writer]
        if not tag.startswith("speed/")
    }
    assert set(served) == set(history.columns[history.notna().any()])
    for name, points in served.items():
        expected = history[name].dropna()
        assert list(points) == expected.index.tolist()
        np.testing.assert_allclose(list(points.values()), expected, rtol=1e-6)
    return len(served)


def test_charts_hold_what_history_holds(server, first):
    """Every number of history.csv is a point at its epoch, 1 and 2; what is not defined is a gap."""
    assert _assert_serves_history(server, first) > 35


def test_an_epoch_done_again_has_one_point(server, again):
    """An epoch that was half-written when the run was killed, and done again, has its points once."""
    _assert_serves_history(server, again)

    about = server.series("text/text", "train", "run/about", "again")
    assert [text["step"] for text in about] == [0, 1]
    assert "Going on after epoch 1." in about[1]["text"]


def test_training_and_validation_share_charts_in_few_groups(server):
    """Seven groups beside speed and the best epoch; each streamed metric has validation's in its chart."""
    charts = server.charts()

    shared = charts["train"] & charts["validation"]
    assert {"loss/loss", "ranking/auc", "ranking/average_precision", "verdicts/tp"} <= shared
    assert {"decisions/balanced_accuracy", "operating_points/specificity_at_sensitivity_0.9"} <= shared
    assert charts["train"] - shared == {
        "optimizer/learning_rate",
        "optimizer/largest_gradient_norm",
        "speed/cubes_per_second",
        "speed/waiting_for_input",
    }
    assert {tag.split("/")[0] for tag in set.union(*charts.values())} == {
        *("decisions", "loss", "operating_points", "optimizer", "ranking", "scores", "verdicts"),
        *("speed", "the_best_epoch"),
    }


def test_the_learning_rate_is_that_of_the_settings(server):
    """0.001, for the first decay comes after 100,000 steps."""
    assert server.points("train", "optimizer/learning_rate") == {
        1: pytest.approx(1e-3),
        2: pytest.approx(1e-3),
    }


def test_speed_and_what_limits_it(server):
    """Cubes a second, the share of waiting, and a sentence with the same number."""
    speed = server.points("train", "speed/cubes_per_second")
    waiting = server.points("train", "speed/waiting_for_input")
    texts = server.series("text/text", "train", "speed/bottleneck")

    assert min(speed.values()) > 1
    assert all(0 <= share <= 1 for share in waiting.values())
    assert len(texts) == 2
    for text in texts:
        share = waiting[text["step"]]
        assert f"Epoch {text['step']}: {share:.1%} of a step is waiting for input." in text["text"]
        assert ("The input is the bottleneck" in text["text"]) == (share > 0.1)


def test_the_precision_recall_curve_is_exact(server, first):
    """Of the best epoch: at each of the three nodules' scores, the precision scikit-learn gives."""
    best = json.loads((first / "metrics.json").read_text())["best_epoch"]
    table = pd.read_csv(first / "validation_predictions.csv")

    (answer,) = server.series(
        "pr_curves/pr_curves", "validation", "ranking/precision_recall/pr_curves"
    ).values()

    curves = {curve["step"]: curve for curve in answer}
    assert list(curves) == [1, 2]
    curve = curves[best]
    precision, recall, thresholds = precision_recall_curve(table["class"], table["logit"])
    at = np.isin(thresholds, table["logit"][table["class"] == 1])
    np.testing.assert_allclose(curve["recall"], [1, 2 / 3, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(curve["recall"], recall[:-1][at], rtol=1e-6)
    np.testing.assert_allclose(curve["precision"], precision[:-1][at], rtol=1e-6)
    counts = ("true_positives", "false_positives", "true_negatives", "false_negatives")
    assert np.sum([curve[name] for name in counts], axis=0).tolist() == [10, 10, 10]
    assert curve["true_positives"] == [3, 2, 1]


def test_scores_are_drawn_by_class(server):
    """Histograms of 3 nodules and 7 others, each epoch."""
    for tag, count in (("scores/nodules", 3), ("scores/others", 7)):
        histograms = server.series("histograms/histograms", "validation", tag)

        assert [step for _, step, _ in histograms] == [1, 2]
        assert [sum(bucket[2] for bucket in buckets) for _, _, buckets in histograms] == [count, count]


@pytest.mark.parametrize(("name", "columns"), [("missed_nodules", 3), ("false_alarms", 7)])
def test_the_hardest_candidates_are_pictured(server, name, columns):
    """PNGs of 1090 x 488: as many columns as the class has cubes, of eight; the others are black."""
    entries = server.series("images/images", "validation", f"hardest/{name}")

    assert [entry["step"] for entry in entries] == [1, 2]
    picture = imread(io.BytesIO(server.bytes(f"images/individualImage?{entries[-1]['query']}")))
    assert picture.shape[:2] == (488, 1090)
    middles = [picture[114, 66 + 128 * column : 190 + 128 * column, :3].std() for column in range(8)]
    assert [deviation > 0 for deviation in middles] == [column < columns for column in range(8)]


def test_runs_are_rows_of_the_hparams_table(server, first):
    """Each by its name, with every setting, lists as text, and its best epoch's metrics; the loss differs."""
    settings = load_settings(str(first / "settings.toml"))
    result = json.loads((first / "metrics.json").read_text())

    experiment = server.json("hparams/experiment", request="{}")
    columns = [{"metric": info["name"]} for info in experiment["metricInfos"]]
    question = {"colParams": columns, "allowedStatuses": ["STATUS_UNKNOWN"], "startIndex": 0, "sliceSize": 9}
    answer = server.json("hparams/session_groups", request=json.dumps(question))

    groups = {group["name"]: group for group in answer["sessionGroups"]}
    assert set(groups) == {"compared0/first", "compared0/again"}
    assert groups["compared0/again"]["hparams"]["loss.name"] == "focal"
    assert experiment["hparamInfos"][0]["name"] == "loss.name"  # what differs comes first
    group = groups["compared0/first"]
    assert group["hparams"] == {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in settings.flat().items()
    }
    assert group["hparams"]["model.filters"] == "[2, 4]"
    metrics = {entry["name"]["tag"]: entry["value"] for entry in group["metricValues"]}
    assert metrics.pop("the_best_epoch/epoch") == result["best_epoch"]
    assert len(metrics) == 6
    for tag, value in metrics.items():
        assert value == pytest.approx(result["validation"][tag.split("/")[1]], rel=1e-5)


def test_words_say_what_the_run_is(server, first):
    """What the command said, the settings, the environment, and what health found, as it has been found."""
    texts = {
        tag: server.series("text/text", "train", f"run/{tag}")
        for tag in ("about", "settings", "environment", "health")
    }

    assert "30 training cubes, 9 of them nodules (1 in 3)" in texts["about"][0]["text"]
    assert "filters = [" in texts["settings"][0]["text"]
    assert '"dtype_policy": "float32"' in unescape(texts["environment"][0]["text"])
    findings = json.loads((first / "metrics.json").read_text())["health"]
    last = unescape(texts["health"][-1]["text"])
    assert last.count("<li>") == len(findings)
    assert all(finding["finding"].split(":")[0] in last for finding in findings)
    assert findings
    assert {text["step"] for tag in ("about", "settings", "environment") for text in texts[tag]} == {0}


def test_steps_are_profiled_on_request(first):
    """profile_steps leaves one trace, under train."""
    (trace,) = first.glob("tensorboard/train/plugins/profile/*/*.xplane.pb")

    assert trace.stat().st_size > 1000


def test_points_of_a_curve_are_even_in_recall_however_rare_nodules_are():
    """1,000 nodules among 491,000 candidates, probabilities near 1/490: 201 points, none off the curve."""
    rng = np.random.default_rng(0)
    is_nodule = np.repeat([True, False], [1_000, 490_000])
    logits = rng.normal(np.where(is_nodule, -4.0, -8.0), 1.0)

    (value,) = precision_recall(is_nodule, logits).value
    tp, _, _, _, precision, recall = tf.make_ndarray(value.tensor)

    assert recall[[0, 50, 100, 150, 200]] == pytest.approx([1, 0.75, 0.5, 0.25, 0.001], abs=1e-3)
    thresholds = np.sort(logits[is_nodule])[(1_000 - tp).astype(int)]
    called = [(logits >= threshold).sum() for threshold in thresholds]
    assert len(set(tp)) == 201
    np.testing.assert_allclose(recall, tp / 1_000, rtol=1e-6)
    np.testing.assert_allclose(precision, tp / called, rtol=1e-6)


def _batches(seconds):
    def make(index):
        time.sleep(seconds)
        return index

    return tf.data.Dataset.range(12).map(lambda index: tf.numpy_function(make, [index], tf.int64)).prefetch(4)


def test_waiting_for_slow_input_is_measured():
    """Twelve batches of 50 ms each, asked for as fast as they come: most of 0.6 s, the same batches."""
    wait = InputWait()

    received = [int(batch) for batch in wait.measured(_batches(0.05))]

    assert received == list(range(12))
    assert wait.seconds > 0.3


def test_input_that_is_ready_is_not_waited_for():
    """Twelve batches of 10 ms each, asked for every 60 ms: hardly any waiting after the first."""
    wait, first = InputWait(), None

    for _ in wait.measured(_batches(0.01)):
        first = wait.seconds if first is None else first
        time.sleep(0.06)

    assert wait.seconds - first < 0.3  # half of what slow input takes
