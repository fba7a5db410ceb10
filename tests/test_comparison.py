import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from simulated_submissions import simulate

from luna_cls.errors import InputError
from luna_cls.files import read_series_uids, write_json
from luna_cls.judging import froc
from luna_cls.judging.binary import binary_metrics
from luna_cls.judging.comparison import compare, folds_of
from luna_cls.judging.resampling import interval_95, scan_weights
from luna_cls.judging.significance import bayesian_sign_test, correlated_t, holm, mcnemar
from luna_cls.judging.submission import read_annotations, read_submission

POINT = ["seriesuid", "coordX", "coordY", "coordZ"]
UIDS = [f"1.2.{i}" for i in range(60)]


@pytest.fixture(scope="module")
def simulated():
    """Two submissions on 60 scans, A the better, and the nodules."""
    return simulate(60, advantage=0.5, seed=1)


def _marks(*rows):
    """Marks on the x axis: (scan, x mm, probability) each."""
    return pd.DataFrame([(uid, x, 0.0, 0.0, p) for uid, x, p in rows], columns=[*POINT, "probability"])


def _nodules(*rows):
    """Nodules of 10 mm on the x axis: (scan, x mm) each."""
    return pd.DataFrame([(uid, x, 0.0, 0.0, 10.0) for uid, x in rows], columns=[*POINT, "diameter_mm"])


def test_two_systems_by_hand():
    """Four scans, three nodules, one false alarm: at 0.9 A has found all, B two, and the third too late."""
    nodules = _nodules(("a", 0), ("b", 0), ("c", 0))
    points = [("a", 0), ("b", 0), ("c", 0), ("d", 90)]
    a = _marks(*[(*point, p) for point, p in zip(points, (0.9, 0.9, 0.9, 0.6), strict=True)])
    b = _marks(*[(*point, p) for point, p in zip(points, (0.9, 0.9, 0.4, 0.6), strict=True)])

    actual = compare({"A": a, "B": b}, nodules, ["a", "b", "c", "d"]).summary()

    # B's curve: (0, 2/3), (1/4, 2/3), (1/4, 1). At 1/8 false positives a scan 2/3, from 1/4 on 1.
    assert actual["scores"]["A"]["cpm"] == 1
    assert actual["scores"]["B"]["cpm"] == pytest.approx((2 / 3 + 6) / 7)
    pair = actual["pairs"][0]
    assert pair["differences"]["sensitivity_at_fps_0.125"]["difference"] == pytest.approx(1 / 3)
    assert pair["differences"]["cpm"]["difference"] == pytest.approx(1 / 21)
    # Labelled by the nodules: of three pairs of nodule and look-alike, B ranks two rightly.
    assert pair["delong"]["auc_a"] == 1
    assert pair["delong"]["auc_b"] == pytest.approx(2 / 3)
    # At one false positive a scan both have found all; at 1/2 only A is right about the third nodule.
    assert pair["mcnemar"]["nodules"] == {"fps_per_scan": 1.0, "only_a": 0, "only_b": 0, "p": 1.0}
    assert pair["mcnemar"]["candidates"] == {
        "probability": 0.5,
        "only_a": 1,
        "only_b": 0,
        "p": pytest.approx(0.5),
    }
    assert pair["verdict"].startswith("A and B cannot be told apart with 4 scans alone: A is ahead by 0.048")
    assert pair["p_holm"] is None
    assert "Intervals from 4 scans are rough." in actual["notes"]


def test_scores_are_those_of_each_by_itself(simulated):
    """CPM and its interval as `evaluate` has them, metrics as `binary_metrics`; differences are theirs."""
    a, b, nodules = simulated

    actual = compare({"A": a, "B": b}, nodules, UIDS, resamples=50, seed=4)

    for name, table in {"A": a, "B": b}.items():
        matches = froc.match(table, nodules, UIDS)
        scores = actual.scores[name]
        assert scores["cpm"] == pytest.approx(matches.curve().cpm)
        drawn = matches.bootstrap(scan_weights(60, 50, 4)).mean(axis=1)
        assert scores["cpm_interval_95"] == pytest.approx(interval_95(drawn))
        for metric, value in binary_metrics(table["class"], table["logit"]).items():
            if metric not in {"tp", "fp", "tn", "fn"}:
                assert scores[metric] == pytest.approx(value)
    for metric, found in actual.pairs[0].differences.items():
        expected = actual.scores["A"][metric] - actual.scores["B"][metric]
        assert found.difference == pytest.approx(expected, abs=1e-12)


def test_what_both_score_alike_is_not_held_against_them(simulated):
    """Paired: the difference is known three times as closely as either CPM, for the scans are the same."""
    _, b, nodules = simulated
    close = b.assign(probability=expit(b["logit"] + 0.1 * np.sin(np.arange(len(b)))))

    actual = compare({"B": b, "C": close}, nodules, UIDS, resamples=200)

    low, high = actual.scores["B"]["cpm_interval_95"]
    assert 1.96 * actual.pairs[0].differences["cpm"].standard_error < (high - low) / 6


def test_the_order_of_rows_does_not_matter(simulated):
    """B's rows shuffled, and its coordinates off by a tenth of a micrometre: nothing changes."""
    a, b, nodules = simulated
    shuffled = b.sample(frac=1, random_state=2).assign(coordY=1e-4)

    expected = compare({"A": a, "B": b}, nodules, UIDS, resamples=20)

    actual = compare({"A": a, "B": shuffled}, nodules, UIDS, resamples=20)
    for metric, found in expected.pairs[0].differences.items():
        assert actual.pairs[0].differences[metric].difference == pytest.approx(found.difference, abs=1e-12)
        assert actual.pairs[0].differences[metric].p == pytest.approx(found.p)
    assert actual.pairs[0].mcnemar_candidates == expected.pairs[0].mcnemar_candidates


def test_a_submission_is_not_better_than_itself(simulated):
    """Difference 0, no interval and p 1 in every metric; and no number of scans would help."""
    a, _, nodules = simulated

    actual = compare({"A": a, "again": a}, nodules, UIDS, resamples=20)

    pair = actual.pairs[0]
    assert {found.difference for found in pair.differences.values()} == {0.0}
    assert np.isnan([found.interval_95 for found in pair.differences.values()]).all()
    assert {found.p for found in pair.differences.values()} == {1.0}
    assert (pair.delong.p, pair.mcnemar_nodules.p, pair.mcnemar_candidates.p) == (1, 1, 1)
    assert pair.scans_needed is None
    assert actual.verdict == "A and again cannot be told apart with these 60 scans: they have the same CPM."


def test_other_points_leave_the_cpm(simulated):
    """B has one candidate less: CPM alone is compared, and a note says why."""
    a, b, nodules = simulated

    actual = compare({"A": a, "B": b.iloc[1:]}, nodules, UIDS, resamples=20)

    assert {name.partition("_")[0] for name in actual.pairs[0].differences} == {"cpm", "sensitivity"}
    assert (actual.pairs[0].delong, actual.pairs[0].mcnemar_candidates) == (None, None)
    assert actual.notes[0].startswith(f"A and B do not score the same points ({len(a)} and {len(b) - 1} in")


def test_without_annotations_the_auc_decides(simulated):
    """Labelled candidates alone: no CPM, no nodules, a verdict on the AUC."""
    a, b, _ = simulated

    actual = compare({"B": b, "A": a}, None, resamples=100)

    assert (actual.metric, actual.num_nodules) == ("auc", None)
    assert "cpm" not in actual.scores["A"]
    assert actual.pairs[0].mcnemar_nodules is None
    assert actual.verdict.startswith("A is better than B by 0.0")
    assert " AUC (95 % 0." in actual.verdict


def test_labels_that_one_submission_alone_has_are_those_of_all(simulated):
    """B without a column class is measured by A's."""
    a, b, _ = simulated

    expected = compare({"A": a, "B": b}, None, resamples=20).summary()

    assert compare({"A": a, "B": b.drop(columns="class")}, None, resamples=20).summary() == expected


def test_marks_on_excluded_findings_have_no_label():
    """Two nodules, a look-alike that both rank last, and an excluded finding that B ranks first: AUC 1."""
    rows = [("a", 0, 0.9), ("b", 0, 0.8), ("b", 50, 0.7), ("b", 90, 0.1)]
    b = _marks(*rows[:2], ("b", 50, 0.99), rows[3])

    actual = compare({"A": _marks(*rows), "B": b}, _nodules(("a", 0), ("b", 0)), None, _nodules(("b", 50)))

    assert (actual.scores["A"]["auc"], actual.scores["B"]["auc"]) == (1, 1)


def test_logits_rank_where_probabilities_are_saturated():
    """Logits 40 and 50 are both a probability of 1: ranked by logit, if it is that of the probability."""
    labels, logits = np.array([0, 1, 0, 1]), np.array([40.0, 50.0, -3.0, 1.0])
    table = _marks(*[(uid, i, p) for i, (uid, p) in enumerate(zip("aabb", expit(logits), strict=True))])
    table = table.assign(**{"class": labels})

    actual = compare({"fine": table.assign(logit=logits), "other": table.assign(logit=-logits)}, None)

    assert actual.scores["fine"]["auc"] == 3 / 4  # 50 beats both, 1 beats one
    assert actual.scores["other"]["auc"] == 5 / 8  # a tie counts half


def test_of_three_the_best_is_named_and_p_is_adjusted():
    """Pairs in order; p_holm is Holm's of the pairs' own; what is open tells the scans for all pairs."""
    a, b, nodules = simulate(100, advantage=0.6, seed=5)
    close = b.assign(probability=expit(b["logit"] + 0.3 * np.sin(np.arange(len(b)))))

    actual = compare({"B": b, "C": close, "A": a}, nodules, [f"1.2.{i}" for i in range(100)], resamples=100)

    assert [(pair.a, pair.b) for pair in actual.pairs] == [("B", "C"), ("B", "A"), ("C", "A")]
    own = [pair.differences["cpm"].p for pair in actual.pairs]
    assert [pair.p_holm for pair in actual.pairs] == pytest.approx(holm(own))
    assert actual.verdict.startswith("A has the highest CPM, 0.8")
    assert "It is better than B by 0." in actual.verdict
    needed = actual.pairs[0].differences["cpm"].scans_needed(0.05 / 3)
    assert [pair.scans_needed for pair in actual.pairs] == [needed, None, None]
    assert any("all 3 pairs together" in note for note in actual.notes)


def test_the_operating_point_is_each_systems_own(simulated):
    """McNemar at one false positive a scan: the nodules that each has found at its own threshold there."""
    a, b, nodules = simulated
    found = []
    for table in (a, b):
        matches = froc.match(table, nodules, UIDS)
        found.append(matches.nodules["probability"] >= matches.curve().threshold_at(1.0))

    actual = compare({"A": a, "B": b}, nodules, UIDS, resamples=20)

    assert actual.pairs[0].mcnemar_nodules == mcnemar(*found)
    assert sum(actual.pairs[0].mcnemar_nodules[:2]) > 0


def test_folds_are_compared_each_by_itself(simulated):
    """Three folds of 20 scans: the differences of three evaluations, their t-test at 1/3 and sign test."""
    a, b, nodules = simulated
    folds = {uid: i % 3 for i, uid in enumerate(UIDS)}

    found = compare({"A": a, "B": b}, nodules, UIDS, folds=folds, resamples=20, seed=7)

    actual = found.pairs[0].over_folds

    expected = []
    for fold in range(3):
        own = [uid for uid in UIDS if folds[uid] == fold]
        expected.append(froc.evaluate(a, nodules, own).cpm - froc.evaluate(b, nodules, own).cpm)
    assert actual.differences == pytest.approx(expected)
    assert actual.beliefs == pytest.approx(correlated_t(expected, rope=0.01, correlation=1 / 3))
    assert actual.sign_test == bayesian_sign_test(expected, rope=0.01, seed=7)
    assert actual.summary()["folds"] == 3
    assert actual.summary()["sign_test"] == actual.sign_test._asdict()


def test_a_fold_without_a_nodule_has_no_cpm():
    """Then the folds are not compared."""
    marks, nodules = _marks(("a", 0, 0.9), ("b", 0, 0.8)), _nodules(("a", 0))

    actual = compare({"A": marks, "B": marks}, nodules, folds={"a": 0, "b": 1}, resamples=20)

    assert actual.pairs[0].over_folds is None


def test_folds_of_cross_validations(tmp_path):
    """Scans belong to the fold whose model was tested on them; other folds, or none, give nothing."""
    for name, uids in {"one": "ab", "two": "ab", "other": "ba"}.items():
        for fold, uid in enumerate(uids):
            folder = tmp_path / name / f"fold{fold}"
            folder.mkdir(parents=True)
            _marks((uid, 0, 0.5), (uid, 9, 0.6)).to_csv(folder / "test_predictions.csv", index=False)
    one, two, other = (tmp_path / name for name in ("one", "two", "other"))

    assert folds_of([one, two]) == {"a": 0, "b": 1}
    assert folds_of([one, other]) == {}
    assert folds_of([one, tmp_path / "predictions.csv"]) == {}


def _fold(folder, name, uid):
    (folder / name).mkdir(parents=True)
    _marks((uid, 0, 0.5)).to_csv(folder / name / "test_predictions.csv", index=False)


def test_what_only_begins_like_a_fold_is_none(tmp_path):
    """`fold0-old` beside `fold0` and `fold1`, with a scan of its own, is passed over."""
    for name, uid in {"fold0": "a", "fold1": "b", "fold0-old": "c", "folds": "d"}.items():
        _fold(tmp_path, name, uid)

    assert folds_of([tmp_path, tmp_path]) == {"a": 0, "b": 1}


def test_damaged_predictions_of_a_fold_are_one_line(tmp_path):
    """The line names the file; where the folds differ by name alone, no file is even read."""
    for folder in ("one", "two"):
        _fold(tmp_path / folder, "fold0", "a")
    (tmp_path / "one" / "fold0" / "test_predictions.csv").write_text('coordX\n"')
    folders = [tmp_path / "one", tmp_path / "two"]

    with pytest.raises(InputError, match=r"fold0.test_predictions\.csv") as caught:
        folds_of(folders)
    assert "\n" not in str(caught.value)
    _fold(tmp_path / "two", "fold1", "b")
    assert folds_of(folders) == {}


def test_the_summary_is_what_the_file_holds(simulated, tmp_path):
    """`comparison.json` reads back with the keys that a page is made from."""
    a, b, nodules = simulated

    write_json(tmp_path / "comparison.json", compare({"A": a, "B": b}, nodules, UIDS).summary())

    read = json.loads((tmp_path / "comparison.json").read_text())
    assert read["names"] == ["A", "B"]
    assert (read["num_scans"], read["num_nodules"]) == (60, len(nodules))
    assert read["bootstrap"] == {"resamples": 1000, "seed": 0}
    assert set(read["pairs"][0]) == {
        "a", "b", "verdict", "differences", "p_holm", "scans_needed", "seeds_needed", "delong", "mcnemar",
        "over_folds",
    }  # fmt: skip
    assert set(read["pairs"][0]["differences"]["cpm"]) == {
        "difference", "interval_95", "p", "scan_error", "seed_error",
    }  # fmt: skip
    assert read["verdict"] == read["pairs"][0]["verdict"]


def _refusal(*arguments, **options):
    with pytest.raises(InputError) as caught:
        compare(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_compared_is_refused_in_a_line():
    """One submission, one scan, other scans, other labels, or nothing that both have."""
    a = _marks(("a", 0, 0.9), ("b", 0, 0.8)).assign(**{"class": [1, 0]})
    nodules = _nodules(("a", 0))

    assert "Received: 1" in _refusal({"A": a}, nodules)
    assert "two scans or more. Received: 1" in _refusal({"A": a, "B": a}, nodules, ["a", "a"])
    assert "B 3; c is in B alone" in _refusal({"A": a, "B": pd.concat([a, _marks(("c", 0, 0.5))])}, nodules)
    assert "A and B give 1 candidates another class, the first at b 0, 0, 0 mm" in _refusal(
        {"A": a, "B": a.assign(**{"class": [1, 1]})}, nodules
    )
    assert "do not score the same points" in _refusal({"A": a, "B": a.assign(coordX=7.0)}, None)
    assert "have not both" in _refusal({"A": a.assign(**{"class": 0}), "B": a.assign(**{"class": 0})}, None)
    assert "2 resamples or more" in _refusal({"A": a, "B": a}, nodules, resamples=1)


@pytest.fixture(scope="module")
def true_differences():
    """The difference in CPM and AUC by the advantage of A, from 100,000 scans: standard error 0.0007."""
    scans = [f"1.2.{i}" for i in range(100_000)]
    a, b, nodules = simulate(100_000, advantage=0.2, seed=1_000_000)
    known = compare({"A": a, "B": b}, nodules, scans, resamples=2).pairs[0].differences
    return {0.0: {"cpm": 0.0, "auc": 0.0}, 0.2: {name: known[name].difference for name in ("cpm", "auc")}}


@pytest.mark.slow
@pytest.mark.parametrize("advantage", [0.0, 0.2], ids=["no difference", "a known difference"])
def test_a_difference_is_claimed_and_covered_as_often_as_said(advantage, true_differences):
    """400 trials of 100 scans: the 95 % interval leaves out the true difference in 5 % of them, ± 2.

    Without a difference that is how often one is claimed.
    """
    truth = true_differences[advantage]
    scans = [f"1.2.{i}" for i in range(100)]
    misses, claims = dict.fromkeys(truth, 0), 0
    for seed in range(400):
        a, b, nodules = simulate(100, advantage, seed)
        pair = compare({"A": a, "B": b}, nodules, scans, resamples=200).pairs[0]
        claims += " is better than " in pair.verdict
        for metric, value in truth.items():
            low, high = pair.differences[metric].interval_95
            misses[metric] += not low <= value <= high

    assert misses["cpm"] / 400 == pytest.approx(0.05, abs=0.02)
    assert misses["auc"] / 400 == pytest.approx(0.05, abs=0.03)  # of 60 scans with a nodule, not 100
    if not advantage:
        assert claims == misses["cpm"]


@pytest.mark.real_data
def test_a_real_submission_rounded_is_worse(real_data):
    """Two decimals cost 0.842 - 0.767 CPM; a little noise on the logits costs nothing that can be told."""
    folder = real_data / "luna16"
    marks = read_submission(folder / "submission_dpn26.csv")
    logits = np.log(marks["probability"]) - np.log1p(-marks["probability"].clip(upper=1 - 1e-12))
    noise = np.random.default_rng(0).normal(size=len(marks))
    submissions = {
        "as it is": marks,
        "rounded": marks.assign(probability=marks["probability"].round(2)),
        "noisy": marks.assign(probability=expit(logits + 0.1 * noise)),
    }

    actual = compare(
        submissions,
        read_annotations(folder / "annotations.csv"),
        read_series_uids(folder / "seriesuids.csv"),
        read_annotations(folder / "annotations_excluded.csv"),
        resamples=300,
    )

    golden = json.loads((real_data / "golden" / "froc.json").read_text())
    rounded = golden["departures_on_the_same_file"]["probabilities rounded to 2 decimals"]
    pairs = {(pair.a, pair.b): pair for pair in actual.pairs}
    cost = pairs["as it is", "rounded"].differences["cpm"]
    assert cost.difference == pytest.approx(golden["cpm"] - rounded, abs=5e-4)
    assert cost.interval_95 == pytest.approx((0.058, 0.091), abs=0.003)
    assert pairs["as it is", "rounded"].verdict.startswith("as it is is better than rounded by 0.075 CPM")
    assert "cannot be told apart with these 888 scans" in pairs["as it is", "noisy"].verdict
