import json

import pytest
from coverage_gate import judge, main


def _file(lines, branches):
    """Of 100 lines and 20 branches, so many are reached."""
    return {
        "summary": {
            "num_statements": 100, "covered_lines": lines, "missing_lines": 100 - lines,
            "num_branches": 20, "covered_branches": branches, "missing_branches": 20 - branches,
        }
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "branches", "is_enough"),
    [(95, 18, True), (94, 20, False), (100, 17, False)],
    ids=["just enough", "lines", "branches"],
)
def test_lines_and_branches_are_held_apart(lines, branches, is_enough):
    """95 % of lines and 90 % of branches are enough; all of one does not make up for the other."""
    table, passes = judge({"luna_cls/scans/grid.py": _file(lines, branches)}, ["luna_cls.scans"])

    assert passes is is_enough
    assert table[1].endswith("TOO LITTLE") is not is_enough


def test_a_room_does_not_hide_behind_another():
    """Scans at 100 % and cubes at 90 % are not 95 % together."""
    files = {"luna_cls/scans/grid.py": _file(100, 20), "luna_cls/cubes/plan.py": _file(90, 20)}

    table, passes = judge(files, ["luna_cls.scans", "luna_cls.cubes"])

    assert not passes
    assert [line.endswith("TOO LITTLE") for line in table[1:]] == [False, True]


def test_the_files_that_miss_most_are_named():
    """Missed lines and branches of the worst three of four files, the worst first."""
    files = {f"luna_cls/scans/{name}.py": _file(100 - n, 20) for n, name in enumerate("abcde")}

    table, _ = judge(files, ["luna_cls.scans"])

    assert table[1].split("   ")[-1] == "scans/e.py 4+0, scans/d.py 3+0, scans/c.py 2+0, 1 more"


def test_a_room_is_a_package_or_a_module():
    """`metrics` is `metrics.py` and neither `metrics_of_old.py` nor a neighbour."""
    files = {
        "luna_cls/learning/metrics.py": _file(96, 20),
        "luna_cls/learning/metrics_of_old.py": _file(0, 0),
        "luna_cls/learning/losses/shell.py": _file(100, 20),
    }

    table, passes = judge(files, ["luna_cls.learning.metrics", "luna_cls.learning.losses"])

    assert passes
    assert " 96.0 %" in table[1]


def test_a_room_that_was_not_measured_does_not_pass(tmp_path, capsys):
    """A misspelt room, or one that has moved: status 1, and the line says so."""
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps({"files": {"luna_cls/scans/grid.py": _file(100, 20)}}))

    assert main(str(path), "luna_cls.scans") == 0
    assert main(str(path), "luna_cls.scan") == 1
    assert "NOT MEASURED" in capsys.readouterr().out
