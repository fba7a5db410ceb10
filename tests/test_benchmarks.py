"""The README's figures are those of benchmarks/results.json, and it is what it says it is."""

import importlib
import json
import re
import sys
from pathlib import Path

import jsonschema
import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "benchmarks"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.fixture(scope="module")
def results():
    """What the last run measured."""
    return json.loads((BENCHMARKS / "results.json").read_text(encoding="utf-8"))


@pytest.fixture
def benchmark(monkeypatch):
    """A function that imports a file of benchmarks/, as `python benchmarks/run.py` does."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


def test_results_fit_their_schema(results):
    """Every row has its figures, and every part says when, by which commit and beside what else it ran."""
    schema = json.loads((BENCHMARKS / "results.schema.json").read_text(encoding="utf-8"))

    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(results, schema)


def test_rows_belong_to_parts_that_ran(results):
    """No row is left of a part that failed or is not there any more, and none lacks its figures."""
    ran = {part["part"] for part in results["parts"] if part["failure"] is None}

    assert {row["part"] for row in results["rows"]} == ran
    assert all(row["q1"] <= row["median"] <= row["q3"] for row in results["rows"])
    assert all("(once)" not in row["figure"] for row in results["rows"] if row["rounds"] > 1)


def test_every_script_it_names_is_there(results):
    """A command in the results can be given."""
    named = {re.search(r"benchmarks/\w+\.py", row["command"]).group() for row in results["rows"]}

    assert sorted(named) == sorted(name for name in named if (ROOT / name).is_file())


def test_every_part_calls_a_script_that_takes_its_options(benchmark):
    """`run.py` tells each benchmark where to leave its rows, and rounds only to those that have some."""
    for part in benchmark("run").PARTS:
        script = (BENCHMARKS / part.script).read_text(encoding="utf-8")

        assert '"--json"' in script, part.script
        assert part.rounds == 0 or '"--rounds"' in script, part.script
        for option in re.findall(r"--[a-z]+", part.shown):
            assert f'"{option}"' in script, (part.script, option)


def test_pages_say_what_results_say(benchmark, results):
    """Between its markers, a page has the table of `python benchmarks/run.py --table PAGE`."""
    table = benchmark("table")
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    marked = {
        page: text for page, text in texts.items() if "<!-- benchmarks -->" in text or "<!-- all b" in text
    }

    assert ROOT / "README.md" in marked
    for page, text in marked.items():
        assert text == table.rewritten(text, results), f"python benchmarks/run.py --table {page}"


def test_a_page_without_markers_is_refused(benchmark, results):
    """A table that would go nowhere is not thrown away silently."""
    with pytest.raises(ValueError, match="neither"):
        benchmark("table").rewritten("# Results\n", results)


def test_the_picture_has_the_same_bytes_twice_and_the_ratios_of_the_results(benchmark, results):
    """It changes with the figures alone; the one that is kept is of these figures."""
    picture = benchmark("picture")
    drawn = picture.draw(results)

    assert drawn == picture.draw(results)
    kept = (BENCHMARKS / "results.svg").read_text(encoding="utf-8")
    for row in picture.compared(results):
        assert f"<!-- {row['with']} -->" in kept
        assert f"<!-- {picture.times(row['ratio'])} -->" in kept


def test_rows_hold_medians_quartiles_and_ratios_within_a_round(benchmark):
    """Of 10, 20 and 40 cubes/s against 5, 10 and 10: 2, 2 and 4 times as fast."""
    rows = benchmark("rows")
    speeds = {"ours": [10.0, 20.0, 40.0], "theirs": [5.0, 10.0, 10.0]}

    ours, theirs = rows.in_turn("both", speeds, "cubes/s", to="ours", headlines=["ours"])

    assert (ours["median"], ours["q1"], ours["q3"]) == (20, 15, 30)
    assert (ours["figure"], ours["ratio"], ours["headline"]) == ("20.0 cubes/s (15.0 to 30.0)", None, True)
    assert theirs["ratio"] == {"to": "ours", "median": 2, "q1": 2, "q3": 3}
    assert not theirs["headline"]


def test_ratios_of_times_go_the_other_way(benchmark):
    """One that takes 3 s where the other takes 2 lets the other be 1.5 times as fast."""
    ratio = benchmark("rows").times_as_fast("ours", [2.0], [3.0], is_speed=False)

    assert ratio == {"to": "ours", "median": 1.5, "q1": 1.5, "q3": 1.5}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (58_523.0, "58,500"),
        (119.6, "120"),
        (1.745, "1.75"),
        (0.28451, "0.285"),
        (0.0, "0.00"),
        (9.999, "10.0"),
    ],
)
def test_figures_have_three_digits_that_count(benchmark, value, text):
    """No more than two cores of a shared machine can tell."""
    assert benchmark("rows").number(value) == text


def test_a_part_that_fails_is_recorded_and_stops_no_other(benchmark, monkeypatch, tmp_path):
    """Its reason is the last line it said; the next part still leaves its rows."""
    run = benchmark("run")
    for name, text in {
        "broken.py": "raise SystemExit('No disk left.')",
        "whole.py": 'import pathlib, sys\npathlib.Path(sys.argv[-1][7:]).write_text(\'[{"what": "it"}]\')',
    }.items():
        (tmp_path / "benchmarks").mkdir(exist_ok=True)
        (tmp_path / "benchmarks" / name).write_text(text)
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    options = run.argparse.Namespace(rounds=None, limit=60.0, venvs=tmp_path, real=None)
    real = run.Part("real", "whole.py", "LUNA16", paths=run.REAL)

    broken, nothing = run._run(run.Part("broken", "broken.py"), options, "abc")
    whole, rows = run._run(run.Part("whole", "whole.py"), options, "abc")
    absent, _ = run._run(real, options, "abc")

    assert (broken["failure"], nothing) == ("exit status 1: No disk left.", [])
    assert whole["failure"] is None
    assert rows == [{"part": "whole", "command": "python benchmarks/whole.py", "what": "it"}]
    assert absent["failure"] == "no LUNA16: name a folder of real data by --real"
