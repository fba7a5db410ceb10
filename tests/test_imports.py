import pkgutil
import subprocess
import sys

import pytest

import luna_cls.judging
import luna_cls.reports
import luna_cls.scans


def _inside(package):
    found = pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    return [package.__name__, *(module.name for module in found)]


WITHOUT_TENSORFLOW = [
    "luna_cls",
    "luna_cls.__main__",
    "luna_cls.cli",
    "luna_cls.demo",
    "luna_cls.errors",
    "luna_cls.files",
    "luna_cls.settings",
    "luna_cls.startup",
    "luna_cls.learning.crossvalidation",
    *(f"luna_cls.cubes.{name}" for name in ("cutting", "store", "folds", "plan")),
    *_inside(luna_cls.judging),
    *_inside(luna_cls.reports),
    *_inside(luna_cls.scans),
]
SLOW_TO_LOAD = ("tensorflow", "keras", "jax", "torch")


def _loaded_by(code, *arguments):
    """Which of the slow packages a fresh interpreter has loaded after `code`."""
    check = f"print(*[name for name in {SLOW_TO_LOAD} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\n{check}", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()[-1].split()


def test_the_list_reaches_into_every_room():
    """Scans, its phantom and judging are walked, so a new module there is covered too."""
    assert {"luna_cls.scans.grid", "luna_cls.scans.phantom.anatomy", "luna_cls.judging.froc"} <= set(
        WITHOUT_TENSORFLOW
    )


def test_scores_and_cubes_need_no_deep_learning():
    """Importing what scores, reads scans, cuts cubes or holds settings loads no TensorFlow, no Keras."""
    code = "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"

    assert _loaded_by(code, *WITHOUT_TENSORFLOW) == []


@pytest.mark.parametrize("module", ["luna_cls", "luna_cls.cli"])
def test_the_front_door_loads_no_numpy(module):
    """Importing the command line loads neither NumPy nor pandas: they would slow every --help."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys, {module}; print('numpy' in sys.modules, 'pandas' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == ["False", "False"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_deep_learning(arguments):
    """luna-cls --help, a command's own --help and --version answer without TensorFlow."""
    code = (
        "from luna_cls.__main__ import main\n"
        "sys.argv[0] = 'luna-cls'\n"
        "try: main()\n"
        "except SystemExit as done: assert done.code == 0"
    )

    assert _loaded_by(code, *arguments) == []
