import pytest

from luna_cls.judging import verdicts
from luna_cls.judging.paired_bootstrap import Difference

BETTER = Difference(0.0212, 0.0088, 888)


def test_the_better_is_named_first():
    """Whichever of the two it is, the better one is the subject and the interval is its own."""
    sentence = "a is better than b by 0.021 CPM (95 % 0.004 to 0.038)."

    assert verdicts.of_pair(("a", "b"), "cpm", BETTER, BETTER.p, 1) == sentence
    turned = Difference(-0.0212, 0.0088, 888)
    assert verdicts.of_pair(("b", "a"), "cpm", turned, turned.p, 1) == sentence


def test_what_cannot_be_told_apart_names_the_scans_it_would_take():
    """A third of it, 0.0071, is 0.81 standard errors: 12 times as many scans."""
    small = Difference(0.0071, 0.0088, 888)

    assert verdicts.of_pair(("a", "b"), "auc", small, small.p, 1) == (
        "a and b cannot be told apart with these 888 scans: a is ahead by 0.007 AUC (95 % -0.010 to 0.024). "
        "About 11,000 scans would be needed."
    )


def test_no_difference_at_all_needs_no_number_of_scans():
    """The same CPM: nothing is divided by 0."""
    assert verdicts.of_pair(("a", "b"), "cpm", Difference(0.0, 0.01, 1888), 1.0, 1) == (
        "a and b cannot be told apart with these 1,888 scans: they have the same CPM."
    )


def test_without_an_interval_it_says_so():
    """Ahead in the one scan that tells: no spread, so no interval, and no number of scans."""
    found = Difference(0.5, float("nan"), 20)

    assert verdicts.of_pair(("a", "b"), "auc", found, 1.0, 1) == (
        "a and b cannot be told apart with these 20 scans: a is ahead by 0.500 AUC (no interval from so few "
        "scans)."
    )


def test_fewer_than_ten_scans_give_no_verdict():
    """However far apart they seem: two scans, p = 0.001, and yet none is called better."""
    found = Difference(0.5, 0.001, 2)

    assert verdicts.of_pair(("a", "b"), "auc", found, 0.001, 1).startswith(
        "a and b cannot be told apart with 2 scans alone: a is ahead by 0.500 AUC (95 % 0.487 to 0.513), "
        "but a verdict takes 10 scans or more."
    )
    assert verdicts.of_all("auc", {"a": 0.9, "b": 0.4}, {("a", "b"): found}, [0.001]) == (
        "a has the highest AUC, 0.900. It cannot be told from b with these 2 scans. "
        "A verdict takes 10 scans or more."
    )


@pytest.mark.parametrize(
    ("difference", "amount"),
    [(0.00021, "0.0003 CPM (95 % 0.0001 to 0.0004)"), (0.000021, "0.00003 CPM (95 % 0.00001 to 0.00004)")],
    ids=str,
)
def test_a_tiny_difference_keeps_a_digit(difference, amount):
    """0.00025 is not told as 0.000."""
    found = Difference(difference * 1.25, difference / 3, 888)

    assert amount in verdicts.of_pair(("a", "b"), "cpm", found, found.p, 1)


def test_the_words_follow_the_adjusted_p():
    """A p of 0.016 by itself is 0.048 among three pairs, and still better; among six, 0.096, not so."""
    assert verdicts.of_pair(("a", "b"), "cpm", BETTER, 0.048, 3) == (
        "a is better than b by 0.021 CPM (95 % 0.004 to 0.038; p = 0.048 among 3 pairs)."
    )
    assert verdicts.of_pair(("a", "b"), "cpm", BETTER, 0.096, 6) == (
        "a and b cannot be told apart with these 888 scans: a is ahead by 0.021 CPM (95 % 0.004 to 0.038), "
        "which is not enough among 6 pairs. About 1,900 scans would be needed."
    )
    assert "; p < 0.0001 among 3 pairs" in verdicts.of_pair(("a", "b"), "cpm", BETTER, 1e-9, 3)


def test_of_several_the_best_is_named_and_whom_it_beats():
    """B leads; it beats a and d, and cannot be told from c."""
    pairs = {
        ("a", "b"): Difference(-0.05, 0.01, 300),
        ("a", "c"): Difference(-0.04, 0.01, 300),
        ("b", "c"): Difference(0.01, 0.01, 300),
        ("b", "d"): Difference(0.02, 0.001, 300),
    }
    scores = {"a": 0.80, "b": 0.85, "c": 0.84, "d": 0.83}

    assert verdicts.of_all("cpm", scores, pairs, [0.0001, 0.001, 0.3, 0.0001]) == (
        "b has the highest CPM, 0.850. It is better than a by 0.050 CPM (95 % 0.030 to 0.070) and d by 0.020 "
        "CPM (95 % 0.018 to 0.022). It cannot be told from c with these 300 scans."
    )


def test_several_that_are_equally_good_are_all_named():
    """The same CPM but for rounding: none is called the best, however many scans there are."""
    none = Difference(0.0, 0.01, 300)
    pairs = dict.fromkeys([("A", "B"), ("A", "C"), ("B", "C")], none)
    scores = {"A": 0.19, "B": 0.19 + 1e-16, "C": 0.19}

    assert verdicts.of_all("cpm", scores, pairs, [1.0] * 3) == "A, B and C have the same CPM, 0.190."
    few = dict.fromkeys(pairs, Difference(0.0, 0.01, 9))
    assert verdicts.of_all("cpm", scores, few, [1.0] * 3) == (
        "A, B and C have the same CPM, 0.190. A verdict takes 10 scans or more."
    )


def test_several_equal_best_beat_whom_each_of_them_beats():
    """Of a and c, which lead, both beat b, but a alone beats d."""
    pairs = {
        ("a", "b"): Difference(0.05, 0.01, 300),
        ("a", "c"): Difference(0.0, 0.01, 300),
        ("a", "d"): Difference(0.01, 0.001, 300),
        ("b", "c"): Difference(-0.05, 0.02, 300),
        ("b", "d"): Difference(-0.04, 0.01, 300),
        ("c", "d"): Difference(0.01, 0.01, 300),
    }
    scores = {"a": 0.85, "b": 0.80, "c": 0.85, "d": 0.84}

    assert verdicts.of_all("cpm", scores, pairs, [0.0001, 1.0, 0.0001, 0.01, 0.001, 0.3]) == (
        "a and c have the same CPM, 0.850, the highest. Each of them is better than b by 0.050 CPM. "
        "Not each of them can be told from d with these 300 scans."
    )


BY_SEEDS = Difference(0.1, 0.01, 40, 0.2 / 3**0.5, 3)


def test_several_seeds_are_named_beside_the_scans():
    """Three seeds 0.2 apart on 40 scans: more seeds are needed, and they are what is asked for."""
    assert verdicts.of_pair(("a", "b"), "average_precision", BY_SEEDS, BY_SEEDS.p, 1) == (
        "a and b cannot be told apart with these 40 scans and 3 seeds: a is ahead by 0.100 average precision "
        f"(95 % {0.1 - 0.4972:.3f} to {0.1 + 0.4972:.3f}). About 37 seeds would be needed."
    )
    pairs, scores = {("a", "b"): BY_SEEDS}, {"a": 0.6, "b": 0.5}
    assert verdicts.of_all("balanced_accuracy", scores, pairs, [0.6]) == (
        "a has the highest balanced accuracy, 0.600. It cannot be told from b with these 40 scans and 3 "
        "seeds."
    )
    same = Difference(0.0, 0.01, 40, 0.1, 3)
    assert verdicts.of_pair(("a", "b"), "auc", same, 1.0, 1) == (
        "a and b cannot be told apart with these 40 scans and 3 seeds: they have the same AUC."
    )


def test_scans_are_asked_for_where_seeds_hardly_differ():
    """A standard error of 0.1 by 40 scans and of 0.001 by three seeds."""
    by_scans = Difference(0.1, 0.1, 40, 0.001, 3)

    sentence = verdicts.of_pair(("a", "b"), "cpm", by_scans, by_scans.p, 1)

    assert sentence.endswith(" About 340 scans would be needed.")  # 40 · (2.0227 + 0.8511)² / 0.997


def test_both_are_asked_for_where_neither_would_do():
    """Seen 0.1, 0.1 by scans and 0.1 by three seeds; without an interval nothing is asked for."""
    both = Difference(0.1, 0.1, 40, 0.1, 3)

    sentence = verdicts.of_pair(("a", "b"), "cpm", both, both.p, 1)

    assert sentence.endswith(" More scans and more seeds would be needed.")
    unknown = Difference(0.1, float("nan"), 40, 0.1, 3)
    assert verdicts.of_pair(("a", "b"), "cpm", unknown, 1.0, 1).endswith("from so few scans).")


def test_more_is_better_of_all_that_may_decide():
    """A metric of which less is better has no words: none can be called better by it."""
    assert not {"log_loss", "brier"} & set(verdicts.IN_WORDS)
