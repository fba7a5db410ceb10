"""The experiments on points and tables, and the nets that they train many at once."""

import keras
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luna_cls.errors import InputError
from luna_cls.experiments import small_nets, tables, tutorial
from luna_cls.experiments.small_nets import Net, Run, train
from luna_cls.judging.significance import correlated_t
from luna_cls.learning import losses

VARIANTS = [(name, {}) for name in losses.LOSSES]
VARIANTS += [("bce", {"class_weights": [0.6, 4.0]}), ("focal", {"apply_class_balancing": True})]
VARIANTS += [(name, {"score": "fbeta"}) for name in ("anyloss", "sol")]


def _linear(columns):
    return keras.Sequential([keras.Input((columns,)), keras.layers.Dense(1)])


def _two_units(columns):
    layers = keras.layers
    hidden = [layers.Dense(2, use_bias=False), layers.BatchNormalization(), layers.Activation("sigmoid")]
    return keras.Sequential([keras.Input((columns,)), *hidden, layers.Dense(1)])


WHOLE_SET = Net(_linear, keras.optimizers.SGD)
IN_BATCHES = Net(_two_units, lambda: keras.optimizers.Adam(0.01), batches_per_epoch=4)
UNTRAINED = Net(_linear, lambda: keras.optimizers.SGD(0.0))


def _run(seed, samples):
    """A quarter or so of class 1; 5 + seed points to score."""
    rng = np.random.default_rng(100 + seed)
    x = rng.normal(size=(samples, 3))
    return Run(seed, x, (x[:, 0] + rng.normal(size=samples) > 1).astype(int), rng.normal(size=(5 + seed, 3)))


RUNS = [_run(0, 60), _run(1, 57), _run(2, 63)]


def _by_keras(net, loss, run, batches):
    """Logits of the run's points after one step on each batch of rows, by Keras alone."""
    keras.utils.set_random_seed(run.seed)
    model = net.build(run.x.shape[1])
    model.compile(net.optimizer(), loss, run_eagerly=True)  # tracing would take longer
    for rows in batches:
        model.train_on_batch(run.x[rows].astype("float32"), run.y[rows, None].astype("float32"))
    return np.asarray(model(run.x_scored.astype("float32")))[:, 0]


@pytest.fixture(scope="module", autouse=True)
def float32():
    """Layers are built in float32, whatever other tests chose."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy(before)


# ------------------------------------------------------------------------------------------ many nets at once


@pytest.mark.parametrize(("name", "parameters"), [("bce", {"class_weights": [0.6, 4.0]}), ("anyloss", {})])
def test_nets_trained_at_once_on_sets_of_different_size_are_those_keras_trains_one_by_one(name, parameters):
    """60, 57 and 63 samples, six steps of the whole set: logits agree to 1e-5 after two and after six."""
    loss = losses.get(name, **parameters)

    trained = train(WHOLE_SET, loss, RUNS, (2, 6))

    for run, logits in zip(RUNS, trained.logits, strict=True):
        assert logits.shape == (2, 5 + run.seed)
        for steps, row in zip((2, 6), logits, strict=True):
            expected = _by_keras(WHOLE_SET, loss, run, [np.arange(len(run.x))] * steps)
            np.testing.assert_allclose(row, expected, atol=1e-5)


def test_nets_trained_at_once_in_batches_are_those_keras_trains_one_by_one():
    """Batch normalisation, Adam, two epochs of 4 batches of 14, each sample once an epoch: equal to 1e-5."""
    trained = train(IN_BATCHES, losses.get("bce"), RUNS, (8,))

    for run, logits in zip(RUNS, trained.logits, strict=True):
        rng = np.random.default_rng(run.seed)
        batches = [part for _ in range(2) for part in rng.permutation(len(run.x))[:56].reshape(4, 14)]
        np.testing.assert_allclose(
            logits[0], _by_keras(IN_BATCHES, losses.get("bce"), run, batches), atol=1e-5
        )


@pytest.mark.parametrize(("name", "parameters"), VARIANTS, ids=str)
def test_the_loss_is_the_librarys_own_and_every_loss_starts_alike(name, parameters):
    """Before the first step the loss is that of `losses.get` on the logits of the seed's first weights."""
    loss = losses.get(name, **parameters)
    at_start = [run._replace(x_scored=run.x) for run in RUNS]

    trained = train(UNTRAINED, loss, at_start, (1,))

    for run, logits, value in zip(RUNS, trained.logits, trained.training_loss[:, 0], strict=True):
        keras.utils.set_random_seed(run.seed)
        model = UNTRAINED.build(3)
        first = model(run.x.astype("float32"))
        assert value == pytest.approx(float(loss(run.y[:, None].astype("float32"), first)), abs=1e-5)
        np.testing.assert_allclose(logits[0], np.asarray(first)[:, 0], atol=1e-5)


def test_losses_of_a_seed_see_the_same_batches_in_the_same_order():
    """Focal loss without focus is cross-entropy, so that both end with the same logits; with focus, not."""
    bce, focal = (train(IN_BATCHES, losses.get(*of), RUNS, (9,)) for of in (("bce",), ("focal",)))
    unfocused = train(IN_BATCHES, losses.get("focal", gamma=0), RUNS, (9,))

    for i in range(3):
        np.testing.assert_allclose(unfocused.logits[i], bce.logits[i], atol=1e-5)
        assert np.abs(focal.logits[i] - bce.logits[i]).max() > 1e-3


def test_a_run_does_not_feel_its_neighbours():
    """Trained alone or among others, the net is the same."""
    alone = train(WHOLE_SET, losses.get("sol"), RUNS[1:2], (10,))
    among = train(WHOLE_SET, losses.get("sol"), RUNS, (10,))

    np.testing.assert_allclose(alone.logits[0], among.logits[1], atol=1e-6)


@pytest.mark.parametrize(
    ("runs", "at", "message"),
    [
        ([], (1,), "No run to train"),
        ([RUNS[0], RUNS[1]._replace(x=np.zeros((57, 2)))], (1,), "the same columns"),
        ([RUNS[0]._replace(y=np.zeros(59))], (1,), "Received: 59 for 60, seed 0"),
        (RUNS, (), "must rise"),
        (RUNS, (0, 3), r"Received: \[0, 3\]"),
        (RUNS, (3, 3), "must rise"),
    ],
)
def test_runs_that_cannot_be_trained_are_refused(runs, at, message):
    with pytest.raises(InputError, match=message):
        train(WHOLE_SET, losses.get("bce"), runs, at)


def test_batch_statistics_are_not_taken_over_padding():
    """Whole sets of 60 and 57 samples would be padded to 60."""
    with pytest.raises(InputError, match="Received: 57 to 60 samples; give it batches"):
        train(Net(_two_units, keras.optimizers.SGD), losses.get("bce"), RUNS[:2], (1,))


# ----------------------------------------------------------------------------------------------- the tutorial


@pytest.fixture(scope="module")
def from_three_starts():
    """Starts 0, 1 and 2 after 30 and 100 steps."""
    names = ("BCE", "focal", "BCE, balanced weights")
    measured = tutorial.measured(names=names, seeds=range(3), at=(30, 100))
    return measured.set_index(["loss", "step", "seed"]).sort_index()


def test_the_tutorials_points_are_drawn_and_split_as_in_the_tutorial():
    """28 of 1,800 test points and 60 of 4,200 others are rare; 6 and 22 were flipped, and lie below."""
    training, test = tutorial.points()

    assert [(len(part.y), part.y.sum()) for part in (training, test)] == [(4200, 60), (1800, 28)]
    assert [int(part.by_chance.sum()) for part in (training, test)] == [22, 6]
    assert training.y[training.by_chance].all()
    # Classes lie 1.5 above and below 0 in the second column.
    assert test.x[(test.y == 1) & ~test.by_chance, 1].min() > -0.2
    assert test.x[test.by_chance, 1].max() < -1.5


def test_after_thirty_steps_what_is_found_is_the_luck_of_the_start(from_three_starts):
    """BCE finds half of the 28 from start 0, none from 1 and 2; focal loss half from 0 and 2, none from 1."""
    found = from_three_starts["found"]

    assert [found["BCE", 30, seed] > 10 for seed in range(3)] == [True, False, False]
    assert [found["focal", 30, seed] > 10 for seed in range(3)] == [True, False, True]
    assert found["BCE", 30, 1] == found["BCE", 30, 2] == found["focal", 30, 1] == 0


def test_by_a_hundred_steps_bce_finds_as_much_as_focal_loss(from_three_starts):
    """Within 4 of 28, and balanced weights find two thirds or more, with ten times the false alarms."""
    at_100 = from_three_starts.xs(100, level="step")
    bce, focal, weighted = (at_100.loc[name] for name in ("BCE", "focal", "BCE, balanced weights"))

    assert bce["found"].min() >= 7
    assert np.abs(bce["found"] - focal["found"]).max() <= 4
    assert weighted["found"].min() >= 19
    assert (weighted["false_alarms"] > 10 * bce["false_alarms"]).all()
    assert (at_100["found_truly"] <= 22).all()


def test_a_lower_threshold_finds_more_with_the_same_net(from_three_starts):
    """Above the share of the rarer class, BCE finds 18 or more at once from starts where 1/2 finds none."""
    moved = tutorial.measured(names=["BCE"], seeds=range(3), threshold=60 / 4200)

    assert (moved["found"] >= 18).all()
    ranking = from_three_starts.loc["BCE", 30]["average_precision"]
    np.testing.assert_allclose(moved["average_precision"], ranking, atol=1e-6)


def test_probabilities_are_those_of_the_net_that_was_measured(from_three_starts):
    """Start 0, BCE, 30 steps: as many rare test points lie above 1/2 as were found."""
    _, test = tutorial.points()

    said = tutorial.probability("BCE", 0, test.x)

    assert ((said > 0.5) & (test.y == 1)).sum() == from_three_starts["found"]["BCE", 30, 0]


def _of_seeds(**found):
    """Four seeds at one step; average precision a tenth of what is found."""
    rows = [
        {"loss": name, "seed": seed, "step": 30, "found": value, "average_precision": value / 10}
        | {"false_alarms": 0, "balanced_accuracy": 0.5}
        for name, values in found.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_differences_are_taken_start_by_start():
    """0, 0, 4, 8 against 0, 2, 2, 8 differ by 0, 2, -2, 0: mean 0, one start more, one less."""
    table = tutorial.paired_differences(_of_seeds(BCE=[0, 0, 4, 8], focal=[0, 2, 2, 8]))

    row = table.set_index("metric").loc["found"]
    assert (row["loss"], row["difference"], row["more"], row["less"]) == ("focal", 0, 1, 1)
    assert -2 <= row["low"] < 0 < row["high"] <= 2


def test_a_difference_that_is_the_same_from_every_start_has_no_interval():
    table = tutorial.paired_differences(_of_seeds(BCE=[1, 2, 3, 4], focal=[2, 3, 4, 5]))

    row = table.set_index("metric").loc["found"]
    assert (row["difference"], row["more"]) == (1, 4)
    assert np.isnan([row["low"], row["high"]]).all()


def test_the_summary_says_from_how_many_starts_none_is_found():
    """Of 0, 0, 4, 8: median 2, quarters 0 and 5, none from two starts."""
    row = tutorial.summary(_of_seeds(BCE=[0, 0, 4, 8])).iloc[0]

    assert row[["found", "found_low", "found_high", "found_none"]].tolist() == [2, 0, 5, 2]


# ------------------------------------------------------------------------------------------------- the tables


@pytest.fixture(scope="module")
def breast_cancer(tmp_path_factory):
    """scikit-learn's set, four methods, 3 and 60 steps of the linear unit."""
    names = ("BCE", "BCE, threshold at prevalence", "AnyLoss f1", "AnyLoss balanced_accuracy")
    methods = {name: tables.METHODS[name] for name in names}
    return tables.measured(["wdbc"], tmp_path_factory.mktemp("none"), "SLP", methods, 1, (3, 60))


def test_the_table_that_needs_no_file_is_there(tmp_path):
    """569 rows of 30 columns, 212 of them malignant."""
    x, y = tables.table("wdbc", tmp_path)

    assert (x.shape, int(y.sum()), tables.available(tmp_path)) == ((569, 30), 212, ["wdbc"])


def test_a_table_that_is_not_there_is_refused_and_those_that_are_listed(tmp_path):
    with pytest.raises(InputError, match=r"No table 'haberman' in .*\. There: wdbc\."):
        tables.table("haberman", tmp_path)


@pytest.mark.real_data
def test_the_papers_tables_have_the_sizes_it_gives(real_data):
    """Rows, columns, and rows of the rarer class."""
    folder = real_data / "anyloss"

    sizes = {
        name: (*x.shape, int(y.sum())) for name in tables.DATASETS for x, y in [tables.table(name, folder)]
    }

    assert sizes == {
        "haberman": (306, 3, 81),
        "ionosphere": (351, 34, 126),
        "wdbc": (569, 30, 212),
        "pima_diabetes": (768, 8, 268),
        "phoneme": (5404, 5, 1586),
    }


def test_every_method_is_measured_on_every_fold_at_every_step(breast_cancer):
    """Four methods, ten folds, two steps; and sixty steps have learned: BCE is right for nine of ten rows."""
    assert len(breast_cancer) == 4 * 10 * 2
    assert breast_cancer.groupby(["method", "step"])["fold"].nunique().eq(10).all()
    assert breast_cancer[breast_cancer["step"] == 60].groupby("method")["accuracy"].mean()["BCE"] > 0.9


def test_a_moved_threshold_leaves_the_ranking(breast_cancer):
    """The same net as BCE's: average precision is equal fold by fold."""
    ranking = breast_cancer.pivot_table(index=["fold", "step"], columns="method", values="average_precision")

    np.testing.assert_allclose(ranking["BCE, threshold at prevalence"], ranking["BCE"], atol=1e-6)


def test_resampled_training_folds_have_as_many_of_both_classes(tmp_path, monkeypatch):
    """Nine folds hold 321 and 191 rows or one less: undersampling keeps the fewer twice, SMOTE the more."""
    seen = {}

    def watched(net, loss, runs, at):
        seen[len(seen)] = [np.bincount(run.y).tolist() for run in runs]
        return small_nets.train(net, loss, runs, at)

    monkeypatch.setattr(tables, "train", watched)
    methods = {name: tables.METHODS[name] for name in ("BCE", "BCE, undersampling", "BCE, SMOTE")}
    tables.measured(["wdbc"], tmp_path, "SLP", methods, 1, (1,))

    whole, fewer, more = seen.values()
    assert {tuple(counts) for counts in whole} <= {(321, 190), (321, 191), (322, 190), (322, 191)}
    assert fewer == [[rare, rare] for _, rare in whole]
    assert more == [[common, common] for common, _ in whole]


def test_the_interval_over_folds_by_hand():
    """0 and 0.1 by turns, ten folds: 0.05 ± 2.2622 · sqrt((1/10 + 1/9) / 360) = 0.05 ± 0.0548."""
    low, high = tables.interval_over_folds(np.tile([0.0, 0.1], 5))

    assert (low, high) == (pytest.approx(-0.00478, abs=1e-5), pytest.approx(0.10478, abs=1e-5))
    assert np.isnan(tables.interval_over_folds(np.full(10, 0.1))).all()


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.floats(-0.1, 0.1))
def test_the_interval_leaves_out_zero_where_the_correlated_t_test_is_sure(seed, shift):
    """A belief above 0.975 on either side of zero, and an interval on that side, are the same."""
    differences = np.random.default_rng(seed).normal(shift, 0.1, 30)

    low, high = tables.interval_over_folds(differences)

    better, _, worse = correlated_t(differences, 0.0, 0.1)
    assert (low > 0, high < 0) == (better > 0.975, worse > 0.975)


def test_the_aimed_loss_is_compared_on_the_metric_it_aims_at(breast_cancer):
    """AnyLoss aimed at F1 less BCE, as worked out by a table of folds."""
    at_60 = breast_cancer[breast_cancer["step"] == 60]

    found = tables.aimed_differences(at_60, "BCE", metrics=("f1", "balanced_accuracy")).set_index("metric")

    assert found.index.tolist() == ["f1", "balanced_accuracy"]
    f1 = at_60.pivot_table(index="fold", columns="method", values="f1")
    assert found.loc["f1", "difference"] == pytest.approx((f1["AnyLoss f1"] - f1["BCE"]).mean())
    np.testing.assert_allclose(found[["better", "equivalent", "worse"]].sum(axis=1), 1)


def test_wins_are_counted_over_tables_against_each_rival_and_the_best_of_them():
    """Ahead of MSE in both tables, of BCE in one; of the better one in one. SOL means the one aimed alike."""
    values = [("a", 0.5, 0.6, 0.65, 0.7), ("b", 0.5, 0.9, 0.85, 0.8)]
    names = ("MSE", "BCE", "SOL f1", "AnyLoss f1")
    rows = [
        ("SLP", dataset, name, "f1", value)
        for dataset, *of in values
        for name, value in zip(names, of, strict=True)
    ]
    table = pd.DataFrame(rows, columns=["net", "dataset", "method", "metric", "value"])

    wins = tables.aimed_wins(table, ["MSE", "BCE", "SOL"]).set_index("rival")

    assert wins["won"].to_dict() == {"MSE": 2, "BCE": 1, "SOL": 1, "all rivals": 1}
    assert wins["datasets"].eq(2).all()
    assert wins.loc["MSE", "better"] > 0.7
    assert wins.loc["BCE", "better"] == pytest.approx(wins.loc["BCE", "worse"], abs=0.01)


@pytest.mark.real_data
def test_the_papers_own_wins(real_data):
    """Aimed at accuracy, F1, G-mean, balanced accuracy: SLP wins 2, 3, 4, 3 of five, MLP 3, 5, 5, 5."""
    values = tables.paper_means(real_data / "anyloss", list(tables.DATASETS))

    wins = tables.aimed_wins(values, ["MSE", "BCE"])

    best = wins[wins["rival"] == "all rivals"].set_index(["net", "metric"])["won"]
    assert [best["SLP", metric] for metric in tables.METRICS] == [2, 3, 4, 3]
    assert [best["MLP", metric] for metric in tables.METRICS] == [3, 5, 5, 5]
