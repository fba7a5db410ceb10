import io
import json
import re
import shutil

import pytest
from parsed_page import Parsed
from report_folders import LOSSES, make_losses
from rich.console import Console

from luna_cls.errors import InputError
from luna_cls.reports.drawing import style_of
from luna_cls.reports.page import write_report
from luna_cls.reports.terminal import print_losses, ranked

EIGHT = (
    "bce",
    "bce, class_weights=balanced",
    "focal, gamma=2",
    "focal, gamma=5, apply_class_balancing=true",
    "cefl",
    "cefl2, gamma=3",
    "anyloss, score=balanced_accuracy, amplification=73",
    "sol, score=gmean",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of a comparison of three losses. Never write into it."""
    return make_losses(tmp_path_factory.mktemp("made") / "losses")


@pytest.fixture(scope="module")
def html(made, tmp_path_factory):
    """Its page."""
    folder = shutil.copytree(made, tmp_path_factory.mktemp("page") / "losses")
    return write_report(folder).read_text()


@pytest.fixture(scope="module")
def text(html):
    """All words of the page."""
    return Parsed(html).text


@pytest.fixture
def said(made, tmp_path):
    """A function that changes what comparison.json holds and gives the words of the page."""

    def words(**changed):
        folder = shutil.copytree(made, tmp_path / "own")
        found = json.loads((folder / "comparison.json").read_text())
        (folder / "comparison.json").write_text(json.dumps({**found, **changed}))
        return Parsed(write_report(folder).read_text()).text

    return words


def found_in(folder):
    return json.loads((folder / "comparison.json").read_text())


def rows_of(text, caption):
    """What follows the caption of a table, up to the row that always says no, and that row."""
    after = text.split(caption)[1]
    return after[: after.index("always “no”") + 120]


def test_the_verdict_stands_first_and_what_is_missing_is_warned_of(text):
    """Bce has 0.600; the training that ran out of memory is named before the first section."""
    verdict, missing = "bce has the highest average precision, 0.600.", "It ran out of memory."

    assert text.index(verdict) < text.index(missing) < text.index("The losses by rank")
    assert "“anyloss, score=balanced_accuracy”, seed 1, test folds 3, 4: It ran out of memory." in text


def test_the_row_that_always_says_no_is_in_every_table_of_scores(text):
    """0.01 of average precision, CPM 0 and AUC 0.5; 99 % accuracy as nodules are, 50 % if half were."""
    ranks = rows_of(text, "The losses by rank")
    shares = rows_of(text, "The same scores as nodules are among candidates (1 : 99)")
    decisions = rows_of(text, "Decisions, whatever the share of nodules")

    assert "always “no” – – – 0.010 – 0.000 0.500" in ranks
    assert "always “no” 99.00 % 50.00 % – – 0.000 0.000 0.010 0.500 0.0560 0.6931" in shares
    assert "always “no” 0.0 % 100.0 % 50.0 % – 50.0 % –" in decisions


def test_a_row_tells_how_sure_a_rank_is(text):
    """The first: rank 1, 1 to 2 in 95 % of draws, first in 30 % of them, 0.600 (0.540 to 0.660)."""
    assert "bce 1 1 to 2 30 % 0.600 0.540 to 0.660 0.550 0.960" in rows_of(text, "The losses by rank")


def test_accuracy_is_seen_for_what_it_is(text):
    """99.25 % of the first loss beside 99.00 % of always saying no; 70 and 50 % if half were nodules."""
    sentence = text.split("What accuracy is worth here")[-1][:600]

    assert "1.00 % of the candidates are on nodules" in sentence
    assert "always saying “no” is right in 99.00 % and finds none of them" in sentence
    assert "The first in rank, bce, is right in 99.25 %: more." in sentence
    assert "it finds 40.5 % of the nodules and dismisses 99.5 % of the others" in sentence
    assert "its accuracy would be 70.0 %, and that of always saying “no” 50.0 %" in sentence


def test_losses_that_call_nothing_a_nodule_have_no_precision(said, made):
    """Without a precision of any, its columns stay, with dashes as for always saying no, and a word on it."""
    scores = {name: {**score, "precision": None} for name, score in found_in(made)["scores"].items()}

    words = said(scores=scores, balanced=scores)

    assert "bce 99.25 % 99.25 % – – 0.530" in words
    assert "precision needs a candidate that is called a nodule" in words


@pytest.mark.parametrize(("accuracy", "word"), [(0.99, "the same"), (0.9, "less")])
def test_accuracy_that_is_no_better_than_none_is_called_so(said, made, accuracy, word):
    """0.99 is the same as always saying no, 0.9 is less."""
    scores = found_in(made)["scores"]
    scores["bce"]["accuracy"] = accuracy

    assert f"is right in {100 * accuracy:.2f} %: {word}." in said(scores=scores)


def test_losses_are_in_the_order_of_their_ranks(said, made):
    """With the ranks turned round, the last comes first in tables; equal ranks stay as given."""
    found = found_in(made)
    turned = {name: {"rank": 3 - at, "interval_95": None, "first": None} for at, name in enumerate(LOSSES)}
    equal = {name: {"rank": 1} for name in LOSSES}

    assert ranked({**found, "ranks": turned}) == list(reversed(LOSSES))
    assert ranked({**found, "ranks": equal}) == list(LOSSES)
    table = rows_of(said(ranks=turned), "The losses by rank")
    assert table.index("anyloss") < table.index("focal") < table.index(" bce")
    assert "anyloss, score=balanced_accuracy 1 – – 0.500" in table


def test_luck_is_seen_seed_by_seed(text):
    """Bce has 0.620 from seed 0 and 0.580 from seed 1."""
    assert "bce 0.620 0.580 0.600" in text.split("Average precision, seed by seed")[1]


def test_the_curve_of_validation_is_a_mean_over_trainings(text):
    """bce: 0.1 in epoch 1, in epoch 3 0.52 and 0.48, so 0.500, the best; two trainings."""
    numbers = text.split("Best mean")[1]

    assert "bce 2 3 0.100 0.500 (epoch 3) 0.500" in numbers
    assert "Lines are means over 2 trainings each (seeds and turns)" in text


def test_a_training_that_ended_early_is_told_of(made, tmp_path):
    """Cut to two epochs, one of two: the third is of the other alone, 0.48."""
    folder = shutil.copytree(made, tmp_path / "own")
    path = folder / "runs" / "loss-0" / "seed0-folds0-1-2" / "history.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))

    words = Parsed(write_report(folder).read_text()).text

    assert "Some trainings ended earlier" in words
    assert "bce 2 3 0.100 0.480 (epoch 3) 0.480" in words


def test_losses_that_chose_their_epochs_by_themselves_are_compared_by_a_score(made, tmp_path):
    """A loss is on a scale of its own: with val_loss as the monitor, average precision is drawn."""
    folder = shutil.copytree(made, tmp_path / "own")
    for path in folder.glob("runs/*/*/metrics.json"):
        path.write_text('{"monitor": "val_loss"}')

    assert "Average precision on validation" in Parsed(write_report(folder).read_text()).text


def test_the_froc_of_all_is_in_one_picture(text):
    """At 1 false positive a scan the curves are at 0.55, 0.5 and 0.45, a row for each loss."""
    numbers = text.split("Sensitivity at LUNA16's seven rates of false positives")[1]

    assert "bce 0.370 0.430 0.490 0.550 0.610 0.670 0.730" in numbers
    assert "Curves are means over 2 seeds. Bands are 95 % intervals over scans" in text


def test_calibration_names_whose_probabilities_are_farthest_off(text):
    """Focal's ECE is 0.2 as trained, 0.008 after a temperature, 0.002 after Platt; bce's is 0.01."""
    said = text.split("Can the probabilities be taken at their word?")[-1]

    assert (
        f"the probabilities of “{LOSSES[1]}” are off by 0.2000, farthest of all, those of bce by 0.0100"
        in said
    )
    assert "0.0080 after one temperature and 0.0020 after Platt's slope and intercept" in said
    assert "what a focal loss does" in said
    assert f"{LOSSES[1]} 0.2000 0.0080 0.0020 0.600 0.024 0.006 0.4000 0.0160 0.0040" in said


def test_cost_is_told_beside_the_fastest(text):
    """800 s are 13.3 min and the least; 1,000 s are 1.25 times as much; 45,000 cubes went into tuning."""
    table = text.split("What each loss cost")[1]

    assert "bce 4 120,000 0 0 13.3 min 1.00 ×" in table
    assert f"{LOSSES[1]} 4 120,000 3 45,000 16.7 min 1.25 ×" in table


def test_tuning_tells_what_was_tried_and_for_how_long(text):
    """Gamma 5 was chosen after 8 epochs with 0.42; 1 was stopped after 2; of two losses nothing was tuned."""
    table = text.split("What tuning tried")[1]

    assert f"{LOSSES[1]}: gamma = 1 2 0.310 no" in table
    assert f"{LOSSES[1]}: gamma = 5 8 0.420 yes" in table
    assert "each time the better half went on (successive halving)" in text
    assert "Nothing was tuned of bce and “anyloss, score=balanced_accuracy”." in text


def test_tuning_in_several_turns_is_one_row_for_what_was_tried(said, made):
    """0.3 and 0.5 in two turns are 0.400 in the mean, chosen in one of them."""
    tuning = found_in(made)["tuning"]
    trial = {"parameters": {"gamma": 2}, "epochs": 8}
    trials = [{**trial, "score": 0.3, "chosen": False}, {**trial, "score": 0.5, "chosen": True}]

    words = said(tuning={**tuning, "method": "grid", "trials": {LOSSES[1]: trials}})

    assert f"{LOSSES[1]}: gamma = 2 8 0.400 1 of 2 turns" in words
    assert "was trained to the end" in words


def test_pairs_are_folded_up_with_what_leaves_more_open(text):
    """Each pair has its p in the heading; 0.03 of error is from seeds and 0.01 from scans."""
    assert f"bce and {LOSSES[1]}: p = 0.06" in text
    assert "0.0100 from the choice of scans and 0.0300 from that of seeds: more seeds would narrow" in text


def test_what_was_done_names_folds_and_the_way_to_tensorboard(text):
    """Two turns, one without a fold to choose the epoch; the settings; tensorboard --logdir OUT/runs."""
    done = text.split("What was done")[-1]

    assert f"{LOSSES[1]} focal as they come gamma = 5 (to test folds 0, 1, 2 and folds 3, 4)" in done

    assert "1 folds 0, 1, 2 fold 5 2 folds 3, 4 none: the last epoch is kept" in done
    assert "from the same seeds (0, 1)" in done
    assert "4 trainings of each" in done
    assert "epochs = 3" in done
    assert "tensorboard --logdir OUT/runs" in done


SECTIONS = {
    "froc": 'id="froc-',
    "calibration": 'id="calibration"',
    "cost": 'id="cost"',
    "by_seed": 'id="seeds"',
    "tuning": "What tuning tried",
    "turns": "What the folds were for",
}


@pytest.mark.parametrize("name", SECTIONS)
def test_what_is_not_known_is_left_out(made, html, tmp_path, name):
    """Without one of its parts the page is made all the same, without the section on it."""
    folder = shutil.copytree(made, tmp_path / "own")
    (folder / "comparison.json").write_text(json.dumps({**found_in(made), name: None}))

    assert SECTIONS[name] in html
    assert SECTIONS[name] not in write_report(folder).read_text()


def test_a_page_of_nothing_but_what_must_be_there(made, tmp_path):
    """Names, verdict, pairs, scores that are null, no runs: dashes, and the row that always says no."""
    folder, found = tmp_path / "own", found_in(made)
    folder.mkdir()
    kept = {name: found[name] for name in ("names", "metric", "verdict", "num_scans", "losses")}
    kept |= {"pairs": [], "scores": {name: {"average_precision": None} for name in LOSSES}}
    (folder / "compare.json").write_text("{}")
    (folder / "comparison.json").write_text(json.dumps(kept))

    words = Parsed(write_report(folder).read_text()).text

    assert f"{LOSSES[0]} – – – – –" in rows_of(words, "The losses by rank")


def test_intervals_that_are_not_defined_are_dashes(said, made):
    """An interval of nulls, as of a loss that scores the same in every draw, is a dash and no bar."""
    nothing = {name: {"average_precision": [None, None]} for name in LOSSES}
    pairs = found_in(made)["pairs"]
    for pair in pairs:
        pair["differences"]["average_precision"]["interval_95"] = [None, None]

    words = said(intervals_95=nothing, pairs=pairs)

    assert "bce 1 1 to 2 30 % 0.600 – 0.550 0.960" in rows_of(words, "The losses by rank")
    assert "average precision, 95 %" not in words.split("For research")[1].split("Which loss")[0]


def test_few_scans_are_warned_of_beside_what_the_comparison_warns_of(said):
    """Nine scans, and what comparison.json says: both stand among what may mislead, no section on luck."""
    words = said(num_seeds=1, seeds=[0], num_scans=9, warnings=["One seed: luck cannot be told."])

    warnings = words.split("What may mislead")[1].split("Which loss")[0]
    assert "9 scans only" in warnings
    assert "One seed: luck cannot be told." in warnings
    assert "How much is luck" not in words


def test_many_missing_trainings_are_counted(said):
    """Of six, four are named and two are counted."""
    entry = {"loss": "bce", "folds": "0", "reason": "No luck."}

    words = said(missing=[{**entry, "seed": seed} for seed in range(6)])

    assert "bce, seed 3, test fold 0: No luck." in words
    assert "bce, seed 4, test fold 0" not in words
    assert "Missing: 2 further trainings, as failures.csv says." in words


def test_a_comparison_that_is_not_finished_is_one_line(made, tmp_path):
    """compare.json without comparison.json: not finished, go on with --resume; no page."""
    folder = shutil.copytree(made, tmp_path / "own")
    (folder / "comparison.json").unlink()

    with pytest.raises(InputError, match=r"is not finished: .+ luna-cls compare with --resume\.$") as error:
        write_report(folder)

    assert str(folder) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"names": ["a", "b"]}, "comparison.json lacks metric"),
        (
            {
                "names": 1,
                "metric": "auc",
                "verdict": 2,
                "pairs": [],
                "scores": {},
                "num_scans": 4,
                "losses": 5,
            },
            "is damaged (",
        ),
    ],
)
def test_a_damaged_comparison_is_one_line(made, tmp_path, content, words):
    """What is not there, or is something else, is said in one line; no page."""
    folder = shutil.copytree(made, tmp_path / "own")
    (folder / "comparison.json").write_text(json.dumps(content))

    with pytest.raises(InputError, match=re.escape(words)) as error:
        write_report(folder)

    assert "\n" not in str(error.value)
    assert not (folder / "report.html").exists()


def test_eight_losses_are_told_apart(tmp_path):
    """No two have both colour and line in common; every one is in the words of every figure and table."""
    folder = make_losses(tmp_path / "eight", EIGHT, (0, 1, 2))

    page = Parsed(write_report(folder).read_text())

    styles = [style_of(position) for position in range(len(EIGHT))]
    assert len({(style["color"], str(style["linestyle"])) for style in styles}) == len(EIGHT)
    assert len({style["marker"] for style in styles}) == len(EIGHT)
    figures = [one["aria-label"] for one in page.all("svg")]
    assert len(figures) == 4
    assert all(name in figure for name in EIGHT for figure in figures)


def test_pairs_with_the_first_loss_come_first(said, made):
    """With the last loss ranked first, the pairs it is in are told before the other one."""
    turned = {name: {"rank": 3 - at} for at, name in enumerate(LOSSES)}

    pairs = said(ranks=turned).split("Pair by pair")[-1]

    first, second, third = LOSSES
    order = [f"{second} and {third}: p", f"{first} and {third}: p", f"{first} and {second}: p"]
    assert sorted(order, key=pairs.index) == order


def printed(comparison, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_losses(console, comparison)
    return console.file.getvalue()


def test_the_terminal_shows_every_loss_beside_always_saying_no(made):
    """Rank, score and accuracy to four digits; the last row always says no; then the verdict."""
    lines = printed(found_in(made), 200).splitlines()

    bce = next(line for line in lines if "bce" in line)
    never = next(line for line in lines if "always “no”" in line)
    assert re.sub(r"[│\s]+", " ", bce) == " 1 bce 0.600 (0.540–0.660) 0.9925 0.700 0.050 "
    assert re.sub(r"[│\s]+", " ", never) == " - always “no” 0.010 0.9900 0.500 0.056 "
    assert lines[0].strip() == "40 scans, 2 seeds"
    assert lines[-1] == "bce has the highest average precision, 0.600."


@pytest.mark.parametrize(
    ("metric", "score"), [("average_precision", "0.550 (0.490–0.610)"), ("cpm", "0.500 (0.440–0.560)")]
)
def test_a_narrow_terminal_cuts_no_number_and_a_name_is_no_markup(made, metric, score):
    """At 80 columns names are folded, numbers are whole; [bold] in a name is printed as it stands."""
    found = {**found_in(made), "metric": metric}
    text = json.dumps(found).replace(LOSSES[1], "focal, class_weights=[bold]")

    narrow = printed(json.loads(text), 80)

    assert all(len(line) <= 80 for line in narrow.splitlines())
    assert "…" not in narrow
    assert score in narrow
    assert narrow.count("0.9925") == 3
    assert "[bold]" in printed(json.loads(text), 200)


def test_what_tuning_tried_is_in_no_curve(made, tmp_path):
    """Beside the run with gamma 5 lie one with gamma 1 and one of a seed that is not compared: no change."""
    folder = shutil.copytree(made, tmp_path / "own")
    before = write_report(folder).read_text()
    chosen = folder / "runs" / "loss-1" / "gamma-5" / "seed0-folds0-1-2"
    tried = shutil.copytree(chosen, folder / "runs" / "loss-1" / "gamma-1" / "seed0-folds0-1-2")
    (tried / "settings.toml").write_text('[loss]\nname = "focal"\ngamma = 1\n')
    shutil.copytree(chosen, folder / "runs" / "loss-1" / "gamma-5" / "seed7-folds0-1-2")

    assert write_report(folder).read_text() == before
