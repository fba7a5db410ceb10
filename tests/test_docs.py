"""The documentation says what the code does: every command, option, setting, loss, network and format."""

import importlib.util
import inspect
import json
import re
import subprocess
from typing import Literal, get_args, get_origin

import pytest
from pages import ROOT, SHELLS, pages, table
from typer.main import get_command

from luna_cls.cli import app
from luna_cls.inference import exports
from luna_cls.inference.options import PAGE, SYMMETRIES
from luna_cls.judging.calibration import METHODS
from luna_cls.learning.losses import LOSSES
from luna_cls.learning.losses.per_sample import PerSample
from luna_cls.learning.losses.soft_confusion import Score
from luna_cls.learning.losses.weighting import EFFECTIVE_NUMBER_BETA, WEIGHTINGS
from luna_cls.learning.models import MODELS
from luna_cls.learning.tuning import GRIDS
from luna_cls.scans.volume import READERS
from luna_cls.settings import Settings, recipe_names

COMMANDS = get_command(app).commands
OF_COMMANDS = ROOT / "docs" / "commands"
SETTINGS = "docs/settings.md"


@pytest.fixture(scope="module")
def hooks():
    """What makes the tables of options when the site is built."""
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_command_has_a_page_and_every_page_a_command():
    """`docs/commands` has a page for each command, with its options, and one on all, which lists them."""
    names = {path.stem for path in OF_COMMANDS.glob("*.md")} - {"index"}

    assert names == set(COMMANDS)
    assert list(table("docs/commands/index.md", "command")) == [
        f"[`{name}`]({name}.md)" for name in _in_menu()
    ]
    for name in names:
        assert f"\n<!-- options: {name} -->\n" in (OF_COMMANDS / f"{name}.md").read_text(encoding="utf-8")


def _in_menu():
    return re.findall(r"- \w+: commands/(\w+)\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["luna-cls", *COMMANDS])
def test_the_table_of_a_command_has_every_option_with_a_word_on_it(hooks, name):
    """Each argument and option that is not hidden has a row, a sentence and the default of the code."""
    command = get_command(app) if name == "luna-cls" else COMMANDS[name]

    made = hooks.on_page_markdown(f"# {name}\n\n<!-- options: {name} -->\n")

    for parameter in command.params:
        called = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.opts[0].upper()
        (row,) = re.findall(rf"^\| `{called}`.*$", made, re.MULTILINE)
        _, does, _, default = (cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1])
        assert len(does.split()) > 1, f"{name} {called} says nothing"
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert default == f"`{parameter.default}`"
        assert (default == "must be given") == parameter.required


def test_every_setting_is_in_the_table_with_its_default():
    """Each key of the settings' tree has a row; what it takes and its default are those of the code."""
    stated = {key: (takes, default) for key, (_, takes, default) in table(SETTINGS, "key").items()}

    actual = dict(_settings(Settings))
    assert set(stated) == set(actual)
    for key, field in actual.items():
        takes, default = stated[key]
        assert default == _as_toml(field.default), key
        for word in _words(key, field):
            assert word in takes, f"{key} takes {word}: {takes}"


def _settings(section, before=""):
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _settings(field.annotation, f"{before}{name}.")
        else:
            yield before + name, field


def _as_toml(value):
    return "none" if value is None else f"`{json.dumps(value)}`"


def _words(key, field):
    """What a description of the values of a setting must hold: its choices, its kind and its bounds."""
    named = {"model.name": MODELS, "loss.name": LOSSES}
    if key in named:
        return [f'"{name}"' for name in named[key]]
    kinds = get_args(field.annotation) or (field.annotation,)
    words = ["none"] if type(None) in kinds else []
    if get_origin(field.annotation) is Literal or any(get_origin(kind) is Literal for kind in kinds):
        choices = kinds if get_origin(field.annotation) is Literal else get_args(kinds[0])
        return [*words, *(f'"{choice}"' for choice in choices)]
    words += [
        word for kind, word in {int: "whole number", float: "number", bool: "true"}.items() if kind in kinds
    ]
    for bound in field.metadata:
        for name, word in {"gt": "above", "ge": "from", "lt": "below", "le": "to"}.items():
            number = getattr(bound, name, None)
            if number is not None and number < 2**31:
                words.append(f"{word} {number:g}")
    return words


def test_every_recipe_is_named():
    """The table of recipes is that of the files that ship."""
    assert sorted(table(SETTINGS, "recipe")) == recipe_names()


@pytest.mark.parametrize(("column", "named"), [("loss", LOSSES), ("network", MODELS)])
def test_losses_and_networks_stand_with_their_parameters_and_defaults(column, named):
    """Each row names a loss or network, and each parameter of its own with the default that the code has."""
    stated = {
        name: {
            key: default.strip().rstrip(",")
            for key, default in re.findall(r"`(\w+)` (.+?)(?=, `|$)", parameters)
        }
        for name, (parameters, _) in table(SETTINGS, column).items()
    }

    actual = {}
    for name, function in named.items():
        parameters = inspect.signature(function).parameters.values()
        own = {p.name: p.default for p in parameters if p.kind is not p.VAR_KEYWORD}
        own.pop("class_weights", None)  # of all losses of a sample, in a sentence below the table
        actual[name] = {key: _as_written(value) for key, value in own.items()}
    assert stated == actual


def test_what_losses_share_is_named():
    """Scores, class weights and the number beside them stand below the table of losses."""
    text = (ROOT / SETTINGS).read_text(encoding="utf-8").split("## Which loss")[1].split("\n## ")[0]

    for word in [*get_args(Score), *WEIGHTINGS]:
        assert f'"{word}"' in text
    assert f"`effective_number_beta` {EFFECTIVE_NUMBER_BETA:g}" in text
    assert "`class_weights`" in text
    last = list(LOSSES.values())[-2:]
    assert not any(issubclass(loss, PerSample) for loss in last)  # "All but the last two"
    assert all(issubclass(loss, PerSample) for loss in LOSSES.values() if loss not in last)


def _as_written(value):
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return str(list(value))
    return "none" if value is None else f"{value:g}"


def test_what_tuning_tries_is_listed():
    """Each loss of `GRIDS` has a row with its parameters and their values."""
    rows = table("docs/commands/compare.md", "loss")

    assert set(rows) == set(GRIDS)
    for loss, grid in GRIDS.items():
        for parameter, values in grid.items():
            listed = rows[loss][0].split(f"`{parameter}` ")[1].split(" with ")[0]
            assert json.loads(f"[{listed}]") == values


def test_every_format_and_method_is_named(hooks):
    """Formats of findings, models and scans, methods of calibration and symmetries have a row or a word."""
    formats = set(table("docs/commands/predict.md", "`--formats`"))
    page = (OF_COMMANDS / "predict.md").read_text(encoding="utf-8")
    (to,) = [row for row in hooks.rows_of("export") if row[0] == "`--format`"]

    assert formats == {"always", PAGE, *exports.WRITERS}
    assert all(re.search(rf"`[^`]*\b{name}`", page) for name in SYMMETRIES if name != "none")
    assert set(table("docs/commands/export.md", "`--format`")) == set(re.findall(r"`(\w+)`", to[2]))
    assert set(table("docs/commands/calibrate.md", "`--method`")) == set(METHODS)
    general = (OF_COMMANDS / "index.md").read_text(encoding="utf-8")
    assert all(f"`{suffix}`" in general for suffix in READERS)


def test_exit_statuses_are_those_of_the_commands():
    """The table has those of the code; 2 is also what the library of the command line gives."""
    stated = set(table("docs/commands/index.md", "status"))
    code = (ROOT / "luna_cls" / "cli" / "app.py").read_text(encoding="utf-8")

    (numbers,) = re.findall(r"^DONE, .*INTERRUPTED = (.*)$", code, re.MULTILINE)
    assert stated == {*numbers.split(", "), "2"}


@pytest.mark.parametrize("page", pages(), ids=str)
def test_what_a_page_tells_to_type_exists(page):
    """Targets of make, extras of pip, scripts, and commands and options of luna-cls, wherever named."""
    targets = set(re.findall(r"^([\w-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets = {word for names in targets for word in names.split()} | {
        "test-jax",
        "test-torch",
        "peers",
        "openvino",
    }
    extras = set(
        re.findall(r"^(\w+) ?=", (ROOT / "setup.cfg").read_text().split("extras_require]")[1], re.MULTILINE)
    )
    typed = page.prose + "".join(fence.text for fence in page.fences if fence.language in SHELLS)

    for target in re.findall(r"(?:^|`|&& )make ([a-z][\w-]*)", typed, re.MULTILINE):
        assert target in targets
    for names in re.findall(r"luna_cls\[([\w,-]+)\]", typed):
        assert set(names.split(",")) <= extras
    for script in re.findall(r"python ((?:benchmarks|docker)/[\w/]+\.py)", typed):
        assert (ROOT / script).is_file()
    for fence in page.fences:
        if fence.language in SHELLS:
            subprocess.run(["bash", "-n"], input=fence.text, encoding="utf-8", check=True)
            for words in fence.commands:
                _check_command_line(words)
    for line in re.findall(r"`(?:\S*/)?luna-cls ([^`]+)`", page.prose):
        _check_command_line(["luna-cls", *line.replace("\n", " ").split()])


def _check_command_line(words):
    """Names a command there is, and options it has; nothing but `luna-cls` is looked at."""
    places = [place for place, word in enumerate(words) if word.split("/")[-1] == "luna-cls"]
    if not places or places[-1] == len(words) - 1:
        return
    before = {option for parameter in get_command(app).params for option in parameter.opts} | {"--help", "-h"}
    rest = words[places[-1] + 1 :]
    while rest and rest[0].startswith("-"):
        assert rest.pop(0) in before
    if not rest or not rest[0].islower():  # COMMAND stands for any
        return
    assert rest[0] in COMMANDS, f"no command {rest[0]}"
    command = COMMANDS[rest[0]]
    known = {option for one in command.params for option in [*one.opts, *one.secondary_opts]} | {
        "--help",
        "-h",
    }
    for word in rest[1:]:
        if re.match(r"--?[a-z]", word):
            assert word.split("=")[0].rstrip(".,;)]") in known, f"luna-cls {rest[0]} has no {word}"
