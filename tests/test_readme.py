import inspect
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from luna_cls.cli import app
from luna_cls.learning.losses import LOSSES
from luna_cls.learning.tuning import GRIDS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_example_runs(small_tree, tmp_path, monkeypatch):
    """The example cuts one cube of 31 x 31 x 31 voxels, once its scan and point are at hand."""
    scan = next(small_tree.glob("subset0/1.2.826.0.1.mhd"))
    lines = (small_tree / "candidates_V2.csv").read_text().splitlines()
    point = next(line.split(",")[1:4] for line in lines if line.startswith("1.2.826.0.1,"))
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace('"scan.mhd"', repr(str(scan))).replace(
        "[[56.2, 86.3, -115.9]]", f"[[{','.join(point)}]]"
    )
    (tmp_path / "example.py").write_text(code)

    result = runpy.run_path(str(tmp_path / "example.py"))

    assert result["cubes"].shape == (1, 31, 31, 31)


@pytest.mark.parametrize(
    "line",
    [line.strip() for line in README.replace("\\\n", " ").splitlines() if line.startswith("    luna-cls ")],
)
def test_a_command_of_the_readme_has_only_options_that_exist(line, run_cli):
    """Every option of a command line in the README is one that the command's help names."""
    _, command, *arguments = shlex.split(line)

    shown = run_cli(command, "--help").stdout

    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in shown
    assert command in {entry.callback.__name__ for entry in app.registered_commands}


def test_links_within_the_readme_lead_somewhere():
    """Each (#anchor) is that of a heading, and each linked file exists."""
    headings = {
        re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }

    links = re.findall(r"\]\((?!http)([^)]+)\)", README)

    assert len(links) > 3
    for link in links:
        path, _, anchor = link.partition("#")
        assert (Path(__file__).parents[1] / path).exists()
        assert not anchor or anchor in headings


def test_the_table_of_losses_has_every_loss_with_its_parameters_and_defaults():
    """Each row names a loss, and each parameter but class_weights with the default that the code has."""
    table = README.split("| loss | parameters")[1].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .* \|$", table, re.MULTILINE)
    stated = {name: dict(re.findall(r"`(\w+)` ([^,]+)", cell)) for name, cell in rows}

    actual = {}
    for name, loss in LOSSES.items():
        parameters = inspect.signature(loss).parameters.values()
        named = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
        named.pop("class_weights", None)
        actual[name] = {key: _as_written(value) for key, value in named.items()}
    assert stated == actual


def _as_written(value):
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}"


def test_the_readme_lists_what_tuning_tries():
    """Each loss of `GRIDS` has a row with its parameters and their values."""
    for loss, grid in GRIDS.items():
        (row,) = re.findall(rf"^  \| `{loss}` \| (.*) \|$", README, re.MULTILINE)
        for parameter, values in grid.items():
            listed = row.split(f"`{parameter}` ")[1].split(" with ")[0]
            assert json.loads(f"[{listed}]") == values
