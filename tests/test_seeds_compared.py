"""Systems that were trained from several seeds, compared."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from simulated_submissions import simulate

from luna_cls.errors import InputError
from luna_cls.files import write_json
from luna_cls.judging import froc
from luna_cls.judging.comparison import compare
from luna_cls.judging.paired_bootstrap import paired_difference
from luna_cls.judging.resampled_metrics import resampled_metrics
from luna_cls.judging.resampling import interval_95, scan_weights
from luna_cls.judging.scored_system import CURVE_FPS_PER_SCAN, curve_in_band

UIDS = [f"1.2.{i}" for i in range(40)]


def _retrained(table, shifts, seed):
    """The table as trained from several seeds: nodules moved by so much each, and noise on every logit."""
    rng = np.random.default_rng(seed)
    tables = []
    for shift in shifts:
        logit = table["logit"] + shift * table["class"] + 0.5 * rng.normal(size=len(table))
        tables.append(table.assign(logit=logit, probability=expit(logit), chosen=logit + 2))
    return tables


@pytest.fixture(scope="module")
def retrained():
    """A and B from three seeds each on 40 scans, A the better but for one seed; and the nodules."""
    a, b, nodules = simulate(40, advantage=0.3, seed=2)
    return _retrained(a, (0.4, 0.1, -0.5), 1), _retrained(b, (0, 0.1, -0.1), 2), nodules


@pytest.fixture(scope="module")
def compared(retrained):
    a, b, nodules = retrained
    return compare({"A": a, "B": b}, nodules, UIDS, resamples=60, seed=3)


@pytest.fixture(scope="module")
def seed_by_seed(retrained):
    a, b, nodules = retrained
    return [compare({"A": a[at], "B": b[at]}, nodules, UIDS, resamples=60, seed=3) for at in range(len(a))]


def test_scores_are_means_of_each_seed_by_itself(compared, seed_by_seed):
    """Natural, balanced and seed by seed: what comparisons of one seed each have, and their mean."""
    assert compared.num_seeds == 3
    for name in ("A", "B"):
        for metric, values in compared.by_seed[name].items():
            assert values == [single.scores[name][metric] for single in seed_by_seed]
            assert compared.scores[name][metric] == pytest.approx(np.mean(values))
            assert compared.balanced[name].get(metric, 0) == pytest.approx(
                np.mean([single.balanced[name].get(metric, 0) for single in seed_by_seed])
            )
    for metric, found in compared.pairs[0].differences.items():
        expected = compared.scores["A"][metric] - compared.scores["B"][metric]
        assert found.difference == pytest.approx(expected, abs=1e-12)


def test_differences_are_paired_by_seed(retrained):
    """B is A but for 0.2 on its nodules: the order of seeds matters, that of systems does not."""
    a, _, _ = retrained
    b = [
        table.assign(logit=(logit := table["logit"] - 0.2 * table["class"]), probability=expit(logit))
        for table in a
    ]

    paired = compare({"A": a, "B": b}, None, resamples=20).pairs[0].differences["auc"]
    crossed = compare({"A": a, "B": b[::-1]}, None, resamples=20).pairs[0].differences["auc"]

    assert paired.difference == pytest.approx(crossed.difference)
    assert paired.seed_error < crossed.seed_error / 3
    turned = compare({"B": b, "A": a}, None, resamples=20).pairs[0].differences["auc"]
    assert (turned.difference, turned.p) == (-paired.difference, pytest.approx(paired.p))


def test_a_list_of_one_table_is_the_table(retrained):
    """One seed, given either way: the same summary, with DeLong's and McNemar's tests."""
    a, b, nodules = retrained

    expected = compare({"A": a[0], "B": b[0]}, nodules, UIDS, resamples=20)

    actual = compare({"A": a[:1], "B": b[:1]}, nodules, UIDS, resamples=20)
    assert str(actual.summary()) == str(expected.summary())
    assert expected.num_seeds == 1
    assert expected.pairs[0].summary()["differences"]["cpm"]["seed_error"] is None
    assert expected.pairs[0].delong is not None


def test_intervals_have_both_chances_in_them(compared, retrained):
    """AUC of A: by the values of three tables on all draws, cut off at 1; one seed has the percentiles."""
    a, _, nodules = retrained
    draws = np.vstack([np.ones((1, 40), int), scan_weights(40, 60, 3)])
    scan = pd.Index(UIDS).get_indexer(a[0]["seriesuid"])
    values = np.stack(
        [resampled_metrics(own["class"], own["logit"], own["probability"], scan, draws)["auc"] for own in a]
    )

    low, high = paired_difference(values, np.zeros_like(values), 40).interval_95
    assert compared.intervals_95["A"]["auc"] == pytest.approx((low, min(high, 1)))
    single = compare({"A": a[0], "B": a[1]}, nodules, UIDS, resamples=60, seed=3)
    assert single.intervals_95["A"]["auc"] == pytest.approx(interval_95(values[0, 1:]))
    assert compared.scores["A"]["cpm_interval_95"] == list(compared.intervals_95["A"]["cpm"])


def test_intervals_stay_within_what_a_metric_can_be(retrained):
    """Two seeds, 12.7 standard errors: log loss from 0 on, Matthews' correlation from -1, others 0 to 1."""
    a, b, _ = retrained

    actual = compare({"A": a[::2], "B": b[::2]}, None, resamples=20)

    assert actual.froc is None  # without annotations
    for intervals in (actual.intervals_95["A"], actual.balanced_intervals_95["A"]):
        at_a_limit = 0
        for metric, (low, high) in intervals.items():
            least, most = {"mcc": (-1, 1), "log_loss": (0, np.inf)}.get(metric, (0, 1))
            assert least <= low < high <= most
            at_a_limit += (low, high) == (least, most)
        assert at_a_limit
    assert any("2 seeds hardly tell" in note for note in actual.notes)


def test_tests_of_one_training_are_left_out(compared):
    """Neither DeLong's nor McNemar's with several seeds, and a note says so."""
    pair = compared.pairs[0]

    assert (pair.delong, pair.mcnemar_nodules, pair.mcnemar_candidates) == (None, None, None)
    assert pair.summary()["mcnemar"] is None
    assert any("McNemar's tests know of one training" in note for note in compared.notes)
    assert "with these 40 scans and 3 seeds: A is ahead by 0.0" in compared.verdict


def test_the_curve_is_the_mean_over_seeds_within_a_band_over_scans(compared, retrained):
    """From 1/16 to 16 false positives a scan, 0.125 and 8 among them; lower bound, mean, upper bound."""
    a, _, nodules = retrained
    curves = [froc.evaluate(own, nodules, UIDS) for own in a]

    actual = compared.froc["A"]

    rates = actual["fps_per_scan"]
    assert (rates[0], rates[-1], len(rates)) == (1 / 16, 16, 129)
    assert set(froc.RATES_PER_SCAN) <= set(rates)
    expected = np.mean([[curve.sensitivity_at(rate) for rate in rates] for curve in curves], axis=0)
    assert actual["sensitivity"] == pytest.approx(expected)
    assert np.all(np.asarray(actual["lower"]) <= actual["sensitivity"])
    assert np.all(np.asarray(actual["upper"]) >= actual["sensitivity"])
    at_one = [froc.match(own, nodules, UIDS).bootstrap(scan_weights(40, 60, 3), [1.0]) for own in a]
    bounds = interval_95(np.mean(at_one, axis=0)[:, 0])
    assert (actual["lower"][64], actual["upper"][64]) == pytest.approx(bounds)
    assert CURVE_FPS_PER_SCAN[64] == 1


def test_a_curve_without_a_draw_that_has_nodules_has_no_band():
    """It is the curve as seen, and its bounds are no numbers."""
    seen = np.linspace(0, 1, 129)

    actual = curve_in_band(np.stack([seen, np.full(129, np.nan)]))

    assert actual["sensitivity"] == seen.tolist()
    assert np.isnan([actual["lower"], actual["upper"]]).all()


def test_folds_are_compared_by_the_mean_over_seeds(retrained):
    """Two folds of 20 scans: of each the mean of three differences, of the metric that decides."""
    a, b, nodules = retrained
    folds = {uid: at % 2 for at, uid in enumerate(UIDS)}

    for metric in ("cpm", "average_precision"):
        actual = compare({"A": a, "B": b}, nodules, UIDS, metric=metric, folds=folds, resamples=20)

        of_seeds = [
            compare({"A": own, "B": other}, nodules, UIDS, metric=metric, folds=folds, resamples=20)
            for own, other in zip(a, b, strict=True)
        ]
        expected = np.mean([single.pairs[0].over_folds.differences for single in of_seeds], axis=0)
        assert actual.pairs[0].over_folds.metric == metric
        assert actual.pairs[0].over_folds.differences == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "word"),
    [("auc", "AUC"), ("average_precision", "average precision"), ("balanced_accuracy", "balanced accuracy")],
)
def test_another_metric_may_decide(retrained, metric, word):
    """It has the interval, the ranks, the p-values and the verdict."""
    a, b, nodules = retrained

    actual = compare({"A": a, "B": b}, nodules, UIDS, metric=metric, resamples=20)

    assert actual.metric == metric
    assert list(actual.scores["A"])[:2] == [metric, f"{metric}_interval_95"]
    assert f" {word} (95 % " in actual.verdict
    assert any(note.lower().startswith(f"{word.lower()} decides") for note in actual.notes)
    assert actual.pairs[0].p_holm == actual.pairs[0].differences[metric].p
    best = max(("A", "B"), key=lambda name: actual.scores[name][metric])
    assert actual.ranks[best].rank == 1
    assert actual.ranks["A"].first + actual.ranks["B"].first == pytest.approx(1)
    assert actual.num_nodules == len(nodules)


def test_a_threshold_chosen_elsewhere_is_tried(retrained, compared):
    """Called at a logit above -2, as `chosen` has it; one table without the column, and nobody has it."""
    a, b, nodules = retrained
    name = "balanced_accuracy_at_chosen_threshold"
    expected = []
    for own in a:
        called, is_nodule = own["logit"] > -2, own["class"] == 1
        expected.append((called[is_nodule].mean() + (~called[~is_nodule]).mean()) / 2)

    assert compared.by_seed["A"][name] == pytest.approx(expected)
    assert compared.balanced["A"][name] == compared.scores["A"][name]
    assert name in compared.pairs[0].differences
    without = [a[0].drop(columns="chosen"), *a[1:]]
    assert name not in compare({"A": without, "B": b}, nodules, UIDS, resamples=20).scores["B"]


def test_a_metric_that_a_seed_does_not_define_has_no_mean(retrained):
    """One seed of A calls nothing a nodule: no precision, and a note; the other metrics keep theirs."""
    a, b, _ = retrained
    silent = a[1].assign(logit=a[1]["logit"] - 30, probability=expit(a[1]["logit"] - 30))

    actual = compare({"A": [a[0], silent, a[2]], "B": b}, None, resamples=20)

    assert np.isnan(actual.scores["A"]["precision"])
    assert np.isnan(actual.pairs[0].differences["precision"].p)
    assert np.isfinite(actual.scores["A"]["recall"])
    assert actual.notes[-1].endswith("seeds without it: precision of A (1 of 3).")


def test_the_file_holds_seeds_and_ranks(compared, tmp_path):
    """`comparison.json` reads back; errors by scans and by seeds stand beside each difference."""
    write_json(tmp_path / "comparison.json", compared.summary())

    read = json.loads((tmp_path / "comparison.json").read_text())
    assert set(read) == {
        "names", "metric", "num_scans", "num_nodules", "num_seeds", "bootstrap", "scores", "intervals_95",
        "by_seed", "balanced", "balanced_intervals_95", "ranks", "froc", "pairs", "verdict", "notes",
    }  # fmt: skip
    assert set(read["ranks"]["A"]) == {"rank", "interval_95", "first"}
    assert len(read["by_seed"]["B"]["auc"]) == 3
    difference = read["pairs"][0]["differences"]["cpm"]
    assert set(difference) == {"difference", "interval_95", "p", "scan_error", "seed_error"}
    assert difference["seed_error"] > 0
    assert "log_loss" in read["balanced"]["A"]
    assert "cpm" not in read["balanced"]["A"]


def _refusal(*arguments, **options):
    with pytest.raises(InputError) as caught:
        compare(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_compared_is_refused_in_a_line(retrained):
    """Other numbers of seeds, other points of one seed, a metric that is unknown or cannot be had."""
    a, b, nodules = retrained

    assert "3 of A, 2 of B" in _refusal({"A": a, "B": b[:2]}, nodules)
    assert "0 of A, 0 of B" in _refusal({"A": [], "B": []}, nodules)
    moved = [b[0], b[1].assign(coordX=7.0), b[2]]
    assert "A (1 of 3) and B (2 of 3) do not score the same points" in _refusal({"A": a, "B": moved}, None)
    assert "one of cpm, auc, average_precision, balanced_accuracy" in _refusal(
        {"A": a, "B": b}, None, metric="log_loss"
    )
    assert "there is no CPM" in _refusal({"A": a, "B": b}, None, metric="cpm")
    assert "AUC cannot decide. A (1 of 3) and B (2 of 3)" in _refusal(
        {"A": a, "B": moved}, nodules, UIDS, metric="auc"
    )
    words = [own.assign(chosen="yes") for own in a]
    assert "A (1 of 3): the column chosen holds" in _refusal({"A": words, "B": words}, None)


@pytest.mark.slow
def test_detectors_that_do_not_differ_are_rarely_told_apart():
    """100 trials of 30 scans and 3 seeds: 7 % or fewer claim a difference; scans alone would claim 24 %."""
    uids = [f"1.2.{i}" for i in range(30)]
    claims = {"cpm": 0, "auc": 0}
    for trial in range(100):
        a, b, nodules = simulate(30, seed=trial)
        qualities = 0.3 * np.random.default_rng([trial, 1]).normal(size=(2, 3))
        tables = {
            name: _retrained(table, shifts, [trial, at])
            for at, (name, table, shifts) in enumerate(zip("AB", (a, b), qualities, strict=True))
        }
        pair = compare(tables, nodules, uids, resamples=100).pairs[0]
        for metric in claims:
            claims[metric] += pair.differences[metric].p < 0.05

    assert claims["cpm"] / 100 <= 0.07
    assert claims["auc"] / 100 <= 0.07
