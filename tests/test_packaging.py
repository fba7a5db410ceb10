"""What is built, and what is installed beside it."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import luna_cls
from luna_cls import processes
from luna_cls.errors import InputError

ROOT = Path(__file__).parents[1]
LEFT_OUT = (".git", ".venv*", ".*cache", ".hypothesis", "__pycache__", "*.egg-info", "build", "dist", "runs")
DECOYS = {
    "runs/demo/run/model.keras",
    "data/patient.mhd",
    "tests/scan.dcm",
    "luna_cls/recipes/my.txt",
    ".env",
    "docker/.env",
}
NEEDED = {
    *("setup.cfg", "pyproject.toml", "MANIFEST.in", "Makefile", "constraints.txt", ".ci/run", "LICENSE"),
    *("README.md", "CHANGELOG.md", "CITATION.cff", ".github/CONTRIBUTING.md", "data/README.md"),
    *("tests/conftest.py", "tests/test_packaging.py", "tests/archives.py", "benchmarks/train.py"),
    *("docker/Dockerfile", "docs/releasing.md", "notebooks/read_a_run.ipynb"),
}
PYTHONS = ("3.11", "3.12", "3.13")


def _extras():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {extra: [Requirement(line) for line in text.split("\n") if line] for extra, text in listed.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist of a checkout in which someone has worked, and the wheel made from that sdist alone."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    for decoy in DECOYS:
        (source / decoy).parent.mkdir(parents=True, exist_ok=True)
        (source / decoy).write_text("left behind")
    code = (
        "import os, sys, tarfile\n"
        "from setuptools import build_meta\n"
        "out = sys.argv[1]\n"
        "name = build_meta.build_sdist(out)\n"
        "safely = {'filter': 'data'} if hasattr(tarfile, 'data_filter') else {}  # not in Python 3.11.2\n"
        "tarfile.open(os.path.join(out, name)).extractall(out, **safely)\n"
        "os.chdir(os.path.join(out, name.removesuffix('.tar.gz')))\n"
        "build_meta.build_wheel(out)\n"
    )
    subprocess.run([sys.executable, "-c", code, folder], cwd=source, check=True, capture_output=True)
    return next(folder.glob("*.tar.gz")), next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_and_nothing_else(built):
    """Every file of luna_cls/, and what installers write; no tests, data, runs, or files left behind."""
    names = set(zipfile.ZipFile(built[1]).namelist())

    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "luna_cls").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == package
    assert package >= {
        *("luna_cls/py.typed", "luna_cls/recipes/demo.toml", "luna_cls/pretrained/phantom/model.keras"),
        *("luna_cls/reports/templates/page.html", "luna_cls/inference/exports/findings.schema.json"),
    }
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_source_distribution_can_be_built_tested_and_documented(built):
    """The checkout's own files, and none that a run or a reader left in it."""
    with tarfile.open(built[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert not NEEDED - names
    assert not names & DECOYS
    assert [
        name for name in names if re.search(r"__pycache__|\.(pyc|mhd|raw|zraw|dcm|npy|nii|gz)$", name)
    ] == []


def test_the_installed_wheel_works_without_the_checkout(built, small_tree, tmp_path):
    """In an empty folder, beside dependencies but not this checkout: recipes, its model, findings, a page."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(home), "platbase": str(home)}))
    python = home / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", python]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([*pip, "install", "--no-deps", "--no-index", built[1]], check=True, env=environment)
    (site / "dependencies.pth").write_text("\n".join(p for p in sys.path if p.endswith("site-packages")))
    folder = tmp_path / "empty"
    folder.mkdir()

    def installed(*command):
        done = subprocess.run(
            command, check=False, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = installed(python, "-c", "import luna_cls; print(luna_cls.__file__)")
    assert Path(where.strip()) == site / "luna_cls" / "__init__.py"
    command = home / "bin" / "luna-cls"
    assert installed(command, "--version") == f"luna-cls {luna_cls.__version__}\n"
    recipe = "from luna_cls.settings import load_settings; print(load_settings('demo').loss.name)"
    assert installed(python, "-c", recipe) == "bce\n"
    points = ("--candidates", small_tree / "candidates_V2.csv", "--formats", "json,html")
    installed(command, "predict", "phantom", next(small_tree.glob("subset0/*.mhd")), *points, "--out", "out")

    findings = pd.read_csv(folder / "out" / "findings.csv")
    assert len(findings) == 10
    assert findings["probability"].between(0, 1).all()
    assert list((folder / "out").rglob("*.html"))


def _metadata(wheel):
    (dist_info,) = (path for path in zipfile.Path(wheel).iterdir() if path.name.endswith(".dist-info"))
    return PathDistribution(dist_info).metadata


def test_the_version_has_one_home(built):
    """luna_cls.__version__; the wheel and CITATION.cff say the same, containers are told it."""
    assert _metadata(built[1])["Version"] == luna_cls.__version__
    assert _citation()["version"] == luna_cls.__version__
    assert luna_cls.__version__ not in (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")


def test_no_address_is_invented(built):
    """The project has no public address yet, and its metadata name none."""
    metadata = _metadata(built[1])

    assert (metadata["Author"], metadata["License"]) == ("The luna_cls authors", "Apache-2.0")
    assert (metadata["Project-URL"], metadata["Home-page"], metadata["Author-email"]) == (None, None, None)


def _citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_citation_names_the_data():
    """LUNA16 and LIDC-IDRI, each with its DOI; the software is for research."""
    citation = _citation()

    dois = [reference["doi"] for reference in citation["references"]]
    assert dois == ["10.1016/j.media.2017.06.015", "10.1118/1.3528204", "10.7937/K9/TCIA.2015.LO9QL9SX"]
    assert "For research, not for diagnosis." in citation["abstract"]


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_requirement_once(python):
    """For each Python, exactly one version of everything that setup.cfg names, and one that it allows."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pin = Requirement(line)
        (version,) = pin.specifier
        assert version.operator == "=="
        where = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
        if pin.marker is None or pin.marker.evaluate({**where, "platform_machine": "x86_64", "extra": ""}):
            assert pins.setdefault(canonicalize_name(pin.name), version.version) == version.version

    for extra, requirements in _extras().items():
        for requirement in requirements:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), (
                extra,
                requirement,
            )


def test_constraints_name_no_index():
    """Names and versions alone: no address, no option, no folder."""
    text = (ROOT / "constraints.txt").read_text()

    assert not re.findall(r"^.*(?:://|^-| @ |\\).*$", text, re.MULTILINE)


def test_an_extra_asks_what_dev_asks():
    """What stands in `dev` and in another extra has the same floor in both."""
    extras = _extras()

    dev = {requirement.name: requirement for requirement in extras.pop("dev")}
    shared = [r for requirements in extras.values() for r in requirements if r.name in dev and not r.extras]

    assert len(shared) > 10
    assert [r for r in shared if dev[r.name].specifier != r.specifier] == []


def test_every_extra_that_a_message_names_exists():
    """Pip install 'luna_cls[...]' works for each that luna_cls tells a user to install."""
    named = {
        extra
        for path in (ROOT / "luna_cls").rglob("*.py")
        for extra in re.findall(r"luna_cls\[(\w+)\]", path.read_text(encoding="utf-8"))
    }

    assert {"cluster", "dicom", "jax"} <= named <= set(_extras())


def test_dask_that_is_not_installed_is_named_with_its_cure(monkeypatch):
    """--dask without distributed: one line, and what to install."""
    monkeypatch.setitem(sys.modules, "distributed", None)

    with pytest.raises(InputError, match=r"^--dask needs Dask: pip install 'luna_cls\[cluster\]'\.$"):
        list(processes.run_on_cluster(json.dumps, [1], "tcp://127.0.0.1:1", []))
