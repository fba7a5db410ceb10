import base64
import html
import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from report_folders import make_scan

from luna_cls.cubes.cutting import cut_cubes
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.reports.page import write_report, write_scan_report
from luna_cls.reports.viewer import CUT, LOWERED, RAISED, coloured, in_strength, in_window, still
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.volume import read_volume


@pytest.fixture(scope="module")
def scored(report_folders):
    return pd.read_csv(report_folders["findings"] / "findings.csv", dtype={"seriesuid": str})


@pytest.fixture(scope="module")
def volume(small_tree):
    """The scan of the folder `scan`, as it is in memory."""
    return read_volume(sorted(LunaTree.open(small_tree).scan_paths.items())[0][1])


@pytest.fixture
def own(report_folders, tmp_path):
    """A copy of the folder of one scan, to be written into."""
    return shutil.copytree(report_folders["scan"], tmp_path / "scan")


def _changed(folder, **content):
    stored = json.loads((folder / "findings.json").read_text())
    (folder / "findings.json").write_text(json.dumps({**stored, **content}))
    return folder


def _text(page):
    page = re.sub(r"<(style|script)>.*?</\1>", "", page, flags=re.S)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))


def _pictures(page):
    """Every picture as 8-bit values, with the words for who does not see it."""
    found = re.findall(r'<img[^>]*base64,([^"]*)" alt="([^"]*)"', page)
    return [(np.rint(255 * imread(io.BytesIO(base64.b64decode(png)))), words) for png, words in found]


def test_the_verdict_counts_what_is_marked(own, volume):
    """The number of findings from the threshold on, the highest probability, and how they are calibrated."""
    findings = json.loads((own / "findings.json").read_text())["findings"]
    count = sum(finding["probability"] >= 0.2 for finding in findings)

    page = write_scan_report(own, volume)
    text = _text(page.read_text())

    assert page == own / "report.html"
    assert 1 < count < 10
    assert f"{count} findings in this scan have a probability of 0.20 or more; the most probable has" in text
    assert "calibrated, by Platt's slope and intercept" in text
    assert f"{count} of 10 findings" in text
    assert text.count("For research, not for diagnosis.") == 1
    assert len(re.findall('<article class="card"', page.read_text())) == count


def test_a_card_tells_size_place_and_slice(own, volume):
    """Of the first: its diameter, its place in mm, and its slice, from 1, counted from both ends."""
    first = json.loads((own / "findings.json").read_text())["findings"][0]
    index = round(volume.grid.to_voxel_zyx(first["position_xyz_mm"])[0])

    card = _text(write_scan_report(own, volume).read_text().split("<article")[1])

    x, y, z = (f"{along:.1f}".replace("-", "−") for along in first["position_xyz_mm"])
    assert "Diameter about 6.0 mm" in card
    assert f"Place x, y, z {x}, {y}, {z} mm" in card
    assert f"Slice {index + 1} of 40 from the feet, {40 - index} from the head" in card


@pytest.mark.parametrize(
    ("direction", "words"),
    [
        ([[1, 0, 0], [0, 1, 0], [0, 0, -1]], "1 of 40 from the head, 40 from the feet"),
        ([[0, 0, 1], [1, 0, 0], [0, 1, 0]], "1 of 40 from the right, 40 from the left"),
        ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], "1 of 40 from the back, 40 from the front"),
    ],
)
def test_slices_are_counted_along_the_scan_as_it_lies(own, volume, direction, words):
    """The first slice of a scan may be at the head, or slices may run across or from back to front."""
    stored = json.loads((own / "findings.json").read_text())
    first = {**stored["findings"][0], "voxel_zyx": [0, 0, 0]}
    _changed(own, scan={**stored["scan"], "direction": direction}, findings=[first])

    assert words in _text(write_scan_report(own, volume).read_text())


def test_without_a_marked_finding_the_three_most_probable_are_shown(tmp_path, scored, small_tree, volume):
    """At a threshold of 0.9998 none is marked: the verdict says so, three cards follow, seven rows below."""
    make_scan(tmp_path / "scan", scored, small_tree, threshold=0.9998, explained=())

    page = write_scan_report(tmp_path / "scan", volume).read_text()

    assert "No finding in this scan has a probability of 0.99980 or more, the threshold." in _text(page)
    assert len(re.findall('<article class="card"', page)) == 3
    assert len(re.findall('<tr><th scope="row">', page.split('id="others"')[1])) == 7 + 1  # and a model


def test_one_finding_none_and_many(own, volume):
    """The verdict counts one and none in words; of 130 marked 20 have a card and 50 of the rest a row."""
    (first, *_) = json.loads((own / "findings.json").read_text())["findings"]
    many = [{**first, "rank": rank} for rank in range(1, 131)]

    def written(findings):
        return write_scan_report(_changed(own, findings=findings), volume).read_text()

    assert "One finding in this scan has a probability of 0.20 or more" in _text(written([first]))
    assert "there is no finding" in _text(written([]))
    page = written(many)
    assert len(re.findall('<article class="card"', page)) == 20
    assert len(re.findall('<tr><th scope="row">', page)) == 50 + 1
    text = _text(page)
    assert "The 20 most probable of 130; the others are in the table below." in text
    assert "The first 110 of them are marked, too. The first 50 of 110; findings.json has all." in text


def test_marks_up_to_a_limit_are_told_as_such(own, volume):
    """With two of those above the threshold marked, the verdict says that there are more."""
    findings = json.loads((own / "findings.json").read_text())["findings"]
    likely = sum(finding["probability"] >= 0.2 for finding in findings)
    limited = [{**finding, "marked": finding["rank"] <= 2} for finding in findings]

    text = _text(write_scan_report(_changed(own, findings=limited), volume).read_text())

    assert f"The 2 most probable of {likely} findings with a probability of 0.20 or more are marked" in text


@pytest.mark.parametrize(
    ("calibrations", "words"),
    [
        ([None], "as trained, not calibrated"),
        ([None, {"method": "platt"}], "of some of the models are calibrated, those of others are not"),
        ([{"method": "platt"}, {"method": "platt"}], "calibrated, by Platt's slope and intercept."),
    ],
)
def test_it_says_whether_probabilities_are_calibrated(own, volume, calibrations, words):
    """Of one model or several; each is named below, with its checksum."""
    models = [
        {"name": f"model {n}", "sha256": str(n) * 64, "calibration": one}
        for n, one in enumerate(calibrations)
    ]

    text = _text(write_scan_report(_changed(own, models=models), volume).read_text())

    assert words in text
    assert all(f"model {n}" in text and str(n) * 64 in text for n in range(len(models)))


def test_pictures_are_the_scan_with_colours_where_the_map_has_them(own, volume):
    """The first still is the cube's; the second the same in colours where the map meets its planes."""
    first = json.loads((own / "findings.json").read_text())["findings"][0]
    (cube,) = cut_cubes(volume, [first["position_xyz_mm"]], CUT)
    explanation = np.zeros(CUT.shape_zyx)
    explanation[25, 19, 23], explanation[15, 21, 17] = 2, -1

    (plain, _), (over, words), *_ = _pictures(write_scan_report(own, volume).read_text())

    np.testing.assert_array_equal(plain, still(in_window(cube)))
    expected = coloured(still(in_window(cube)), still(in_strength(explanation), 128))
    np.testing.assert_array_equal(over, expected)
    assert "orange" in words
    assert "blue" in words


def test_findings_without_a_map_have_no_switch(own, volume):
    """One of the cards is explained, the first; without maps none is, and there is no word of colours."""
    page = write_scan_report(own, volume).read_text()
    (own / "saliency_1.nii.gz").unlink()
    without = write_scan_report(own, volume).read_text()

    assert page.count('type="checkbox"') == 1
    assert page.index('type="checkbox"') < page.index("2. probability")
    assert "They tell what the model looked at, not whether it is right." in _text(page)
    assert 'type="checkbox"' not in without
    assert "They tell what the model looked at" not in _text(without)


def test_colours_are_orange_above_and_blue_below():
    """The strongest is three quarters opaque, what is under a tenth of it not seen, half is half as much."""
    explanation = np.array([1.0, 0.5, 0.05, 0.0, -1.0])
    picture = np.full((1, 5), 100, np.uint8)

    found = coloured(picture, in_strength(explanation)[None])[0]

    np.testing.assert_array_equal(found[0], np.rint(0.25 * 100 + 0.75 * np.array(RAISED)))
    np.testing.assert_array_equal(found[4], np.rint(0.25 * 100 + 0.75 * np.array(LOWERED)))
    assert found[2].tolist() == found[3].tolist() == [100, 100, 100]
    assert 100 < found[1][0] < found[0][0]
    assert in_strength(np.zeros((3, 3, 3))).tolist() == np.full((3, 3, 3), 128).tolist()


def test_the_command_reports_a_scan_too(own, small_tree, volume, report_folders):
    """Beside a findings.csv of its own and with --scans: the same page; that of many scans is another."""
    (own / "findings.csv").write_text("seriesuid\n")

    by_path = write_report(own, scans=[small_tree]).read_text()

    assert by_path == write_scan_report(own, volume).read_text()
    assert "findings.json" not in [path.name for path in report_folders["findings"].iterdir()]


def test_without_the_scan_there_is_a_table(own):
    """No picture and no script; the marked findings are rows, and a line tells how to get pictures."""
    page = write_scan_report(own).read_text()

    assert "<img" not in page
    assert "<script" not in page
    assert "luna-cls report FOLDER --scans SCANS" in _text(page)
    assert "Diameter in mm" in page


def test_a_finding_outside_the_scan_has_no_picture(own, volume):
    """A point a metre away says so in its card; its map is not looked for."""
    (first, *others) = json.loads((own / "findings.json").read_text())["findings"]
    _changed(own, findings=[{**first, "position_xyz_mm": [1e3, 0, 0]}, *others])

    assert "No picture: the point lies outside the scan." in _text(write_scan_report(own, volume).read_text())


def test_what_is_known_of_a_finding_is_told(own, volume):
    """Made from three, known to be on no nodule, of unknown diameter."""
    (first, *_) = json.loads((own / "findings.json").read_text())["findings"]
    known = {**first, "merged": 3, "class": 0, "diameter_mm": None}

    text = _text(write_scan_report(_changed(own, findings=[known]), volume).read_text())

    assert "Made from 3 nearby findings" in text
    assert "Known to be on no nodule" in text
    assert "Diameter" not in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"scan": {}}, "is damaged"),
        ({"findings": [{"rank": 1}]}, "lacks 'position_xyz_mm'"),
        ({"threshold": "high"}, "is damaged"),
        ({"models": [1]}, "is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(own, volume, content, words):
    """What is not what predict writes is refused, and no page is left."""
    with pytest.raises(InputError, match=re.escape(words)) as refusal:
        write_scan_report(_changed(own, **content), volume)

    assert "\n" not in str(refusal.value)
    assert not (own / "report.html").exists()


def test_missing_and_damaged_files_are_named(own, volume):
    """A map cut short, then no findings.json: one line each, with the file's name."""
    path = own / "saliency_1.nii.gz"
    path.write_bytes(path.read_bytes()[:100])

    with pytest.raises(InputError, match=r"saliency_1\.nii\.gz"):
        write_scan_report(own, volume)
    (own / "findings.json").unlink()
    with pytest.raises(InputError, match=r"has no findings\.json"):
        write_scan_report(own, volume)


def test_names_and_places_of_the_map_are_those_of_predict(own, volume, scored):
    """The table of places and the page agree on the first finding's point."""
    first = scored[scored["seriesuid"] == volume.series_uid].sort_values("logit").iloc[-1]
    place = ", ".join(f"{first[name]:.1f}".replace("-", "−") for name in COORDINATES)

    assert place in _text(write_scan_report(own, volume).read_text())
