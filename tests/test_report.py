import base64
import io
import json
import re
import shutil
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from parsed_page import Parsed

from luna_cls.cli.endings import add_report
from luna_cls.cubes.cutting import cut_cubes
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.reports.blocks import Page, Section, Table, Uid, number, percent, probability
from luna_cls.reports.calibration_sections import decisions
from luna_cls.reports.candidates import accuracy_in_words
from luna_cls.reports.evidence import apart
from luna_cls.reports.page import render, write_evaluation_report, write_report
from luna_cls.reports.viewer import Cubes, in_window, sprite, still
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import read_volume

KINDS = ("run", "findings", "scan", "evaluation", "comparison", "losses")


@pytest.fixture(scope="module")
def pages(report_folders, small_tree, tmp_path_factory):
    """The page of a folder of each kind, with pictures, by kind."""
    made = {}
    for kind, folder in report_folders.items():
        own = shutil.copytree(folder, tmp_path_factory.mktemp("pages") / kind)
        made[kind] = write_report(own, scans=[small_tree]).read_text()
    return made


@pytest.fixture
def own(report_folders, tmp_path):
    """A function that copies a folder of a kind, to be written into."""
    return lambda kind: shutil.copytree(report_folders[kind], tmp_path / kind, dirs_exist_ok=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_needs_nothing_else_and_is_whole(pages, kind):
    """No address but of its own parts; all that is opened is closed; no id twice; links lead somewhere."""
    page = Parsed(pages[kind])

    assert page.not_closed == []
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            address = attributes.get(name, "#")
            assert address.startswith(("#", "data:")), address
            assert not re.fullmatch("#.+", address) or address[1:] in ids
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
        assert "url(" not in attributes.get("style", "").replace("url(#", "")
    assert [tag for tag, _ in page.tags].count("h1") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_all_that_is_seen_is_also_said(pages, kind):
    """Every drawing and picture has words, every table a caption and headings; no heading skips a level."""
    page = Parsed(pages[kind])

    drawings, pictures = page.all("svg"), page.all("img")
    assert drawings or pictures
    assert all(one["role"] == "img" and len(one["aria-label"]) > 30 for one in drawings)
    assert all(len(one["alt"]) > 20 for one in pictures)
    assert all(one["aria-label"] for one in page.all("input"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(one["scope"] in ("col", "row", "colgroup") for one in page.all("th"))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.text.count("For research, not for diagnosis.") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_files_give_the_same_bytes(own, pages, small_tree, kind):
    """A page holds no date and no chance."""
    again = write_report(own(kind), scans=[small_tree]).read_text()

    assert again == pages[kind]


def test_accuracy_never_stands_alone(pages):
    """12 of 40 candidates are on nodules: always saying no is right in 70 %, and the page says so."""
    text = Parsed(pages["run"]).text

    assert "saying “no” gets" in text
    assert "70.00 %" in text


def test_what_is_wrong_with_a_training_stands_high_up_and_is_no_markup(pages):
    """A finding of the training's health comes before the first section, its angle brackets escaped."""
    html = pages["run"]

    assert html.index("Epoch 1: The ranking is &lt;poor&gt;.") < html.index("Every candidate by itself</a>")


def test_scans_that_failed_are_named(pages):
    """Four scans were read and one was not: the page says 4 of 5, names it and why."""
    text = Parsed(pages["findings"]).text

    for words in ("4 of 5", "1 scan could not be read", "No scan & no hope."):
        assert words in text


def test_the_verdict_of_an_evaluation_gives_its_numbers(report_folders, pages):
    """Sensitivity at one false positive a scan, the CPM and its interval are those of froc.json."""
    froc = json.loads((report_folders["evaluation"] / "froc.json").read_text())
    text = Parsed(pages["evaluation"]).text

    low, high = froc["cpm_interval_95"]
    assert f"{100 * froc['sensitivity_at_fps']['1']:.1f} % of the nodules are found" in text
    assert f"{froc['cpm']:.3f} ({low:.3f} to {high:.3f} in 95 % of 50 resamples of scans)" in text


def test_a_comparison_gives_its_verdict_and_the_tests_behind_it(report_folders, pages):
    """The verdict stands first; McNemar's counts and the difference of CPM with its interval follow."""
    found = json.loads((report_folders["comparison"] / "comparison.json").read_text())
    pair = found["pairs"][0]
    text = Parsed(pages["comparison"]).text

    nodules, cpm = pair["mcnemar"]["nodules"], pair["differences"]["cpm"]
    assert text.index(found["verdict"]) < text.index("How far apart they are")
    alone = f"found by first alone and {nodules['only_b']} by second alone (McNemar, p = {nodules['p']:.2g})"
    assert alone in text
    low, high = (number(bound, 4) for bound in cpm["interval_95"])
    # Four scans are too few for a verdict, and for a p-value that decides one.
    assert f"{number(cpm['difference'], 4)} {low} to {high} –" in text


def test_a_comparison_over_folds_tells_both_bayesian_tests(own):
    """The t-test's probabilities, then the sign test's, of the first, the second, and neither."""
    folder = own("comparison")
    found = json.loads((folder / "comparison.json").read_text())
    beliefs = {"a_better": 0.7, "equivalent": 0.2, "b_better": 0.1}
    signs = {"a_better": 0.55, "equivalent": 0.41, "b_better": 0.04}
    folds = {"metric": "cpm", "folds": 5, "rope": 0.01, **beliefs, "sign_test": signs}
    found["pairs"][0]["over_folds"] = folds
    (folder / "comparison.json").write_text(json.dumps(found))

    text = Parsed(write_report(folder).read_text()).text

    assert "first is better in CPM by more than 0.01 is 70.0 %, that second is 10.0 %" in text
    assert (
        "as good as equal 20.0 % (Bayesian correlated t-test); in the same order 55.0 %, 4.0 % and 41.0 % by"
        in text
    )


def test_a_run_tells_what_calibration_does_and_where_to_draw_the_line(report_folders, pages):
    """The method, its error before and after, and the thresholds of operating_points.json are there."""
    stored = json.loads((report_folders["run"] / "calibration.json").read_text())
    points = json.loads((report_folders["run"] / "operating_points.json").read_text())["points"]
    text = Parsed(pages["run"]).text

    before, after = stored["crossfit"]["before"], stored["crossfit"]["after"]["platt"]
    assert "luna-cls predict applies Platt's slope and intercept" in text
    assert f"none {before['ece']:.4f}" in text
    assert f"platt (chosen) {after['ece']:.4f}" in text
    thresholds = " ".join(probability(point["threshold_probability"]) for point in points)
    assert f"Call a nodule from probability {thresholds}" in text
    assert "sensitivity 90 % or more at most 1 false positive a scan" in text


def test_a_run_that_is_not_calibrated_says_so(own):
    """Without what luna-cls calibrate leaves there is a line on that command, and no threshold."""
    folder = own("run")
    for name in ("calibration.json", "operating_points.json"):
        (folder / name).unlink()

    text = Parsed(write_report(folder).read_text()).text

    assert "luna-cls calibrate RUN" in text
    assert "Call a nodule from probability" not in text


def test_the_caption_of_the_reliability_curve_says_where_its_bars_are_from(own):
    """With intervals over scans the bars are, too; without, they are Wilson's."""
    folder = own("evaluation")
    with_scans = Parsed(write_report(folder).read_text()).text
    stored = json.loads((folder / "reliability.json").read_text())
    (folder / "reliability.json").write_text(json.dumps({**stored, "interval_95": None}))

    without = Parsed(write_report(folder).read_text()).text

    assert "Bars are 95 % intervals, by a bootstrap over scans (Wilson's where" in with_scans
    assert "Bars are 95 % intervals, Wilson's, which take candidates to be independent." in without


def test_few_scans_are_warned_of(pages):
    """Four scans are few: both pages that measure something say so among what may mislead."""
    for kind in ("run", "evaluation"):
        warnings = Parsed(pages[kind]).text.split("What may mislead")[1]
        assert "4 scans only" in warnings[:600]


SECTION_OF_FILE = {
    "roc.csv": 'id="roc-',
    "nodules.csv": 'id="misses"',
    "false_positives.csv": 'id="false-alarms"',
    "scans.csv": 'id="scans"',
    "metrics.json": 'id="candidates"',
    "reliability.json": 'id="reliability"',
    "operating_points.json": 'id="thresholds"',
}


@pytest.mark.parametrize("missing", SECTION_OF_FILE)
def test_what_is_not_there_is_left_out(own, pages, missing):
    """Without one of its files an evaluation is reported all the same, without the section on it."""
    folder = own("evaluation")
    (folder / missing).unlink()

    assert SECTION_OF_FILE[missing] in pages["evaluation"]
    assert SECTION_OF_FILE[missing] not in write_report(folder).read_text()


def test_an_evaluation_without_annotations_tells_how_to_get_froc(own):
    """Candidates judged by their own labels alone: AUC first, and a line on --annotations."""
    folder = own("evaluation")
    for path in folder.glob("*froc*"):
        path.unlink()

    text = Parsed(write_report(folder).read_text()).text

    assert "A nodule is put before another candidate in" in text
    assert "luna-cls evaluate with --annotations" in text


def test_without_scans_there_are_tables_and_a_line_how_to_get_pictures(own):
    """No picture, no script; the hardest nodules are listed, and --scans is named."""
    page = Parsed(write_report(own("evaluation")).read_text())

    assert not page.all("img")
    assert not page.all("script")
    assert "--scans" in page.text


def test_a_scan_that_cannot_be_read_is_a_line_on_the_page(own, small_tree, tmp_path):
    """With one of four scans cut short, its findings have no picture and say why; the others have theirs."""
    tree = shutil.copytree(small_tree, tmp_path / "tree")
    (tree / "subset2" / "1.2.826.0.3.raw").write_bytes(b"short")

    page = Parsed(write_report(own("findings"), scans=[tree]).read_text())

    assert page.all("img")
    assert "No picture: its scan could not be read" in page.text


def test_without_a_bootstrap_there_is_a_curve_without_a_band(own):
    """Neither the verdict nor the curve claims an interval, and a line says how to get them."""
    folder = own("evaluation")
    for path in folder.glob("froc_*_bootstrapping.csv"):
        path.unlink()
    froc = json.loads((folder / "froc.json").read_text())
    nothing = dict.fromkeys(("cpm_interval_95", "sensitivity_at_fps_interval_95", "bootstrap", "by_size"))
    (folder / "froc.json").write_text(json.dumps({**froc, **nothing}))

    text = Parsed(write_report(folder).read_text()).text

    verdict_and_contents, curve = text.split("Every candidate by itself")[:2]
    assert "95 %" not in verdict_and_contents + curve
    assert "--resamples" in text


SCANS = ("seriesuid", "num_nodules", "num_found", "num_marks", "num_false_positives", "found_at_1")


@pytest.mark.parametrize(
    ("kind", "name", "content", "words"),
    [
        ("evaluation", "froc.json", "{", "froc.json is damaged"),
        ("evaluation", "froc.json", "{}", "lacks sensitivity_at_fps"),
        ("evaluation", "froc.csv", "a,b\n1,2\n", "lacks the column fps_per_scan"),
        ("run", "metrics.json", "[]", "metrics.json is damaged"),
        ("run", "metrics.json", "{}", "lacks best_epoch"),
        ("run", "validation_predictions.csv", "", "validation_predictions.csv is damaged"),
        ("findings", "findings.csv", "seriesuid\n1\n", "lacks the column coordX"),
        ("findings", "findings.csv", "seriesuid,coordX,coordY,coordZ,probability\n1,0,0,0,xyz\n", "is 'xyz'"),
        ("evaluation", "scans.csv", f"{','.join(SCANS)}\n1,2,two,3,0,1\n", "num_found is 'two'"),
        ("comparison", "comparison.json", '{"names": []}', "lacks verdict"),
    ],
)
def test_a_damaged_file_is_one_line(own, kind, name, content, words):
    """Status 1, one line that names the file, and no page."""
    folder = own(kind)
    (folder / name).write_text(content)

    with pytest.raises(InputError, match=re.escape(words)) as error:
        write_report(folder)

    assert name in str(error.value)
    assert "\n" not in str(error.value)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("kind", "name", "content"),
    [
        ("evaluation", "evaluation.json", {"inputs": [1]}),
        ("evaluation", "operating_points.json", {"points": None, "decision_curve": [{}]}),
        ("evaluation", "reliability.json", {"ece": 1}),
        ("run", "metrics.json", {"best_epoch": 1, "monitor": "val_auc", "validation": {}, "no_skill": {}}),
        ("comparison", "comparison.json", {"names": 1, "verdict": 2, "pairs": 3, "num_scans": 4}),
    ],
)
def test_a_file_that_holds_something_else_is_one_line(own, kind, name, content):
    """JSON that can be read but is not what was written: one line that names the folder, and no page."""
    folder = own(kind)
    (folder / name).write_text(json.dumps(content))

    with pytest.raises(InputError, match=r"is damaged \(.+\)\. Make it again\.") as error:
        write_report(folder)

    assert str(error.value).startswith(str(folder))
    assert "\n" not in str(error.value)
    assert not (folder / "report.html").exists()


def test_the_command_prints_the_page(own, run_cli, small_store):
    """luna-cls report RUN --store STORE prints the path of the page, which has pictures."""
    folder = own("run")

    done = run_cli("report", folder, "--store", small_store.path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{folder / 'report.html'}\n"
    assert Parsed((folder / "report.html").read_text()).all("img")


def test_a_page_that_cannot_be_written_costs_no_training(tmp_path, capsys):
    """What train and predict end with warns in one line, names the command to try again, and goes on."""
    add_report(tmp_path)

    said = capsys.readouterr().err
    assert said.startswith("Warning: no report was written")
    assert f"luna-cls report {tmp_path}" in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_predict_ends_with_a_page(run_cli, small_tree, tmp_path):
    """Its findings are reported beside them, with pictures from the scans that were read."""
    candidates = small_tree / "candidates_V2.csv"

    done = run_cli("predict", "phantom", small_tree, "--candidates", candidates, "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in done.stderr
    assert len(Parsed((tmp_path / "out" / "report.html").read_text()).all("img")) == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}"], "is no run, evaluation, comparison or prediction"),
        (["{tmp}/none"], "No folder at"),
        (["{evaluation}", "--scans", "{tmp}"], "holds no scan"),
        (["{evaluation}", "--store", "{tmp}"], "is no cube store"),
    ],
)
def test_a_wrong_path_is_one_line(own, run_cli, tmp_path, arguments, words):
    """What is no folder to report, no scan or no store: status 1 and one line."""
    empty = tmp_path / "empty"
    empty.mkdir()
    places = {"tmp": empty, "evaluation": own("evaluation")}

    done = run_cli("report", *(argument.format(**places) for argument in arguments))

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_an_unfinished_run_is_told_to_go_on(own):
    """Without metrics.json a run is not finished: one line."""
    folder = own("run")
    (folder / "metrics.json").unlink()

    with pytest.raises(InputError, match="is not finished"):
        write_report(folder)


def test_the_curve_for_a_paper_is_on_white_and_the_same_every_time(own):
    """froc.svg names real colours and no variables of a page; froc.png is 300 dots an inch, white outside."""
    folder = own("evaluation")
    write_evaluation_report(folder)
    first = {name: (folder / name).read_bytes() for name in ("froc.svg", "froc.png")}
    write_evaluation_report(folder)

    assert b"var(" not in first["froc.svg"]
    assert b"#ffffff" in first["froc.svg"]
    picture = imread(io.BytesIO(first["froc.png"]))
    assert picture.shape[1] == 4.4 * 300
    np.testing.assert_array_equal(picture[0, 0], 1)
    assert {name: (folder / name).read_bytes() for name in first} == first


def test_pictures_show_the_cube_the_right_way_up():
    """A bright octant at the patient's right, front and head is the upper left of all three planes."""
    hu = np.full((31, 31, 31), -1350, np.int16)
    hu[15:, :16, :16] = 250

    planes = np.split(still(in_window(hu)), [31, 33, 64, 66], axis=1)[::2]

    for plane in planes:
        assert plane[:15, :15].min() == 255
        assert plane[16:].max() == plane[:, 16:].max() == 0


def test_a_sprite_holds_every_plane():
    """Plane z of a cube of 5 lies in row z // 3, column z % 3 of its sprite; the rest is black."""
    cube = np.random.default_rng(0).integers(1, 255, (5, 5, 5), np.uint8)

    tiles = sprite(cube)

    assert tiles.shape == (10, 15)
    for z in range(5):
        row, column = 5 * (z // 3), 5 * (z % 3)
        np.testing.assert_array_equal(tiles[row : row + 5, column : column + 5], cube[z])
    assert tiles[5:, 10:].max() == 0


def test_cubes_come_from_the_store_or_the_scans(small_tree, small_store):
    """The store's cube of a candidate is the one cut from its scan, with less around it."""
    points = small_store.candidates.iloc[[3, 25, 11]]

    stored = Cubes(small_store).around(points)
    cut = Cubes(scans=[small_tree]).around(points)

    assert [cube.hu.shape for cube in stored] == [(31, 31, 31)] * 3
    for one, other in zip(stored, cut, strict=True):
        np.testing.assert_array_equal(one.hu, other.hu[5:-5, 5:-5, 5:-5])
    uid = points["seriesuid"].iloc[0]
    volume = read_volume(LunaTree.open(small_tree).scan_paths[uid])
    np.testing.assert_array_equal(stored[0].hu, cut_cubes(volume, points[COORDINATES].iloc[:1])[0])


def test_what_has_no_cube_says_why(small_tree, small_store):
    """A point that is not in the store, in another scan, or outside its scan."""
    uid = small_store.candidates["seriesuid"].iloc[0]
    far = pd.DataFrame([[uid, 1e4, 0.0, 0.0], ["9.9", 0.0, 0.0, 0.0]], columns=["seriesuid", *COORDINATES])

    assert [cube.missing for cube in Cubes(small_store).around(far)] == ["it is not in the store."] * 2
    outside, unknown = Cubes(scans=[small_tree]).around(far)
    assert outside.missing == "the point lies outside the scan."
    assert unknown.missing == "its scan is not among those given."


def test_of_places_near_each_other_the_first_is_taken():
    """Points at 0, 9, 10 and 11 mm: 0 and 10 are taken at 10 mm; the same place in another scan, too."""
    x_mm = [0.0, 9.0, 10.0, 11.0, 0.0]
    points = pd.DataFrame({"seriesuid": list("aaaab"), "coordX": x_mm, "coordY": 0.0, "coordZ": 0.0})

    assert apart(points, most=9).index.tolist() == [0, 2, 4]
    assert apart(points, most=2).index.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.5, "0.50"),
        (0.97, "0.970"),
        (0.9998, "0.99980"),
        (0.00012, "0.00012"),
        (1e-6, "0.0000010"),
        (1e-7, "< 0.000001"),
        (1 - 1e-9, "> 0.999999"),
        (0.0, "0.00"),
        (1.0, "1.00"),
        (None, "–"),
    ],
)
def test_a_probability_has_digits_enough(value, words):
    """Two that count, as seen from 0 or from 1."""
    assert probability(value) == words


def test_numbers_are_written_for_readers():
    """A minus is a minus, a share is in percent, what is not defined is a dash."""
    assert (number(-0.0421), percent(0.8419), number(float("nan"))) == ("−0.042", "84.2 %", "–")


def test_names_from_files_are_no_markup():
    """A scan that is called <b> is shown so."""
    table = Table("Scans", ("Scan", "x"), [("<b>", "1")])
    html = render(Page("Kind", "<i>", "Verdict.", sections=[Section("one", "One", blocks=[table])]))

    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;b&gt;" in html


def test_pictures_of_the_page_are_those_of_the_cubes(own, small_store):
    """The still of the first card is the middle planes of its candidate's cube, in the lung window."""
    html = write_report(own("run"), store=small_store).read_text()
    scores = pd.read_csv(own("run") / "validation_predictions.csv", dtype={"seriesuid": str})
    lowest = scores[scores["class"] == 1].sort_values("probability").head(1)
    (cube,) = Cubes(small_store).around(lowest)

    picture = imread(io.BytesIO(base64.b64decode(Parsed(html).all("img")[0]["src"].split(",")[1])))

    np.testing.assert_array_equal(np.rint(picture * 255), still(in_window(cube.hu)))


def _with(folder, name, **content):
    """Puts some values into a JSON file of a folder, which is made if it is not there."""
    path = folder / name
    stored = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**stored, **content}))
    return folder


def test_a_comparison_of_few_scans_says_that_they_decide_nothing(own):
    """Four scans, and a warning in comparison.json: both stand high up, the bar is faint; 40 scans decide."""
    folder = _with(own("comparison"), "comparison.json", warnings=["second: <b> is odd."])

    few = write_report(folder).read_text()
    many = write_report(_with(folder, "comparison.json", num_scans=40)).read_text()

    warnings = Parsed(few).text.split("What may mislead")[1].split("How far apart they are")[0]
    assert "second: <b> is odd." in warnings
    assert "4 scans only" in warnings
    assert "4 scans only" not in many
    assert "fewer than ten scans decide nothing" in few
    assert "fewer than ten scans decide nothing" not in many
    assert "opacity: 0.2" in few[few.index('id="differences-') :]
    assert "opacity: 0.2" not in many[many.index('id="differences-') : many.index('id="froc-')]


def test_p_is_called_adjusted_only_where_it_is(own):
    """Of one pair p is as it is, and may be unknown; of two pairs it is adjusted."""
    folder = own("comparison")
    (pair,) = json.loads((folder / "comparison.json").read_text())["pairs"]
    unknown = {**pair, "p_holm": None}

    one = Parsed(write_report(_with(folder, "comparison.json", pairs=[unknown])).read_text()).text
    two = Parsed(write_report(_with(folder, "comparison.json", pairs=[pair, pair])).read_text()).text

    assert "p, adjusted" not in one
    assert "p, adjusted" in two


def test_a_calibrated_run_says_which_probabilities_are_as_trained(own, pages):
    """Verdict, histogram, confusion, reliability and cards do; without a calibration nothing does."""
    text = Parsed(pages["run"]).text
    folder = own("run")
    for name in ("calibration.json", "operating_points.json"):
        (folder / name).unlink()

    for words in (
        "at probability 1/2 as trained, before calibration, ",
        "Probabilities as trained, before calibration",
        "Confusion matrix at probability 1/2 as trained, before calibration",
        "These are probabilities as trained, before calibration.",
    ):
        assert words in text
    assert text.count("Probabilities are as trained, before calibration.") == 2
    assert "before calibration" not in Parsed(write_report(folder).read_text()).text


@pytest.mark.parametrize(
    ("accuracy", "words"),
    [(0.77, "less than always"), (0.98, "the same as always"), (0.99, "more than always")],
)
def test_accuracy_is_set_against_always_saying_no(accuracy, words):
    """Always saying no is right in 98 %."""
    assert words in accuracy_in_words({"accuracy": accuracy}, {"accuracy": 0.98})


def test_pictures_tell_how_wide_they_are_and_how_they_lie(own, pages, small_store):
    """Cut from scans a plane is 41 mm wide, from the store 31 mm; the axes are LPS."""
    stored = Parsed(write_report(own("run"), store=small_store).read_text()).text
    cut = Parsed(pages["run"]).text

    for text, width in ((stored, 31), (cut, 41)):
        assert f"each plane, which is {width} mm wide" in text
        assert "in the sagittal plane the front is on the left" in text
        assert "x grows to the patient's left, y to the back, z to the head (LPS)" in text
        assert "Candidates on nodules with the lowest probability" in text
        assert "Worst misses" not in text


def test_figures_say_what_they_are(pages):
    """Each calibration figure has its line; what depends on the threshold names it, AUC does not."""
    text = Parsed(pages["run"]).text

    for words in ("Brier score mean square", "Log loss mean surprise", "Calibration slope (right: 1) of a"):
        assert words in text
    assert "sensitivity of candidates, at probability 1/2" in text
    assert "AUC of candidates" not in text


@pytest.mark.parametrize(
    ("benefits", "words"),
    [
        ([0, 0, 0, 0, 0], "none at no threshold."),
        ([0, 1, 1, 0, 0], "none at thresholds from 0.20 to 0.30."),
        ([1, 1, 0, 1, 0], "none at thresholds from 0.10 to 0.20 and at threshold 0.40."),
    ],
)
def test_a_decision_curve_says_where_the_model_is_of_use(benefits, words):
    """Stretch by stretch, not from the first to the last threshold; also under the drawing."""
    curve = [
        {"threshold": threshold, "net_benefit": benefit / 100, "treat_all": -0.1, "treat_none": 0.0}
        for threshold, benefit in zip((0.1, 0.2, 0.3, 0.4, 0.5), benefits, strict=True)
    ]

    (figure,) = decisions({"points": None, "decision_curve": curve}, "").blocks

    assert words in figure.alternative
    assert words in figure.caption


@pytest.mark.parametrize(
    ("calibration", "words"),
    [
        ({"method": "platt"}, "The probabilities are calibrated, by Platt's slope and intercept."),
        (None, "The probabilities are as trained, not calibrated."),
    ],
)
def test_findings_say_whether_they_are_calibrated(own, calibration, words):
    """As prediction.json has it, beside the verdict."""
    folder = _with(own("findings"), "prediction.json", model="model.keras", calibration=calibration)

    text = Parsed(write_report(folder).read_text()).text

    assert words in text.split("For research")[0]


def test_one_scan_is_spoken_of_as_one(own):
    """One scan, one finding of 0.2: no "1 of 1 scan"; of failures, scans and candidates are counted."""
    folder = own("findings")
    findings = pd.read_csv(folder / "findings.csv", dtype={"seriesuid": str}).head(1).assign(probability=0.2)
    findings.to_csv(folder / "findings.csv", index=False)
    (folder / "seriesuids.csv").write_text(f"{findings['seriesuid'].iloc[0]}\n")
    (folder / "failures.csv").write_text(
        "seriesuid,row,status,reason\na,,unreadable,y\na,1,outside,y\na,2,outside,y\n"
    )

    text = Parsed(write_report(folder).read_text()).text

    assert "In the one scan there is no place with a probability of 1/2 or more." in text
    assert "1 scan could not be read: nothing is known there." in text
    assert "2 candidates could not be scored." in text


@pytest.mark.parametrize(
    ("inputs", "title"),
    [
        ({"predictions": "findings.csv", "folder": "unet"}, "unet"),
        ({"predictions": "findings.csv"}, "evaluation"),
        ({"predictions": "mine.csv", "folder": None}, "mine.csv"),
    ],
)
def test_an_evaluation_is_called_after_what_was_evaluated(own, inputs, title):
    """A file that a command has named says nothing: its folder does, or else that of the evaluation."""
    folder = _with(own("evaluation"), "evaluation.json", inputs=inputs)

    assert f"<h1>{title}</h1>" in write_report(folder).read_text()


def test_an_interval_that_is_not_known_is_not_shown(own):
    """A CPM that no resample changes has no interval: no brackets in the verdict."""
    folder = _with(own("evaluation"), "froc.json", cpm_interval_95=[None, None])

    html = write_report(folder).read_text()

    assert "resamples of scans)" not in html[: html.index("For research")]


def test_long_uids_are_shortened_in_tables_and_options_do_not_break():
    """Of 30 characters the last 10 are seen and all are in the title; a command is code, word by word."""
    uid = Uid("1.2.3.4.5.6.7.8.9.0.1234567890")
    table = Table("Scans", ("Scan",), [(uid,), (Uid("9.9"),)])
    section = Section("one", "One", ("Try luna-cls evaluate with --resamples 1000.",), [table])
    html = render(Page("Kind", "Title", "Verdict.", sections=[section]))

    assert f'<span title="{uid}">…1234567890</span>' in html
    assert ">9.9<" in html
    assert "<code><span>luna-cls</span> <span>evaluate</span></code> with" in html
    assert "<code><span>--resamples</span> <span>1000</span></code>." in html
