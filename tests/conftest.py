import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from luna_cls.scans.grid import Grid

for colour in ("FORCE_COLOR", "GITHUB_ACTIONS", "NO_COLOR", "PY_COLORS", "TTY_COMPATIBLE"):
    os.environ.pop(colour, None)  # the command line, not imported yet, would print other bytes

IDENTITY = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
FLIPPED_XY = ((-1, 0, 0), (0, -1, 0), (0, 0, 1))

SCANS_OF_SMALL_TREE = {  # uid: (spacing_xyz_mm, origin_xyz_mm, direction, compressed)
    "1.2.826.0.1": ((0.7, 0.7, 1.25), (-20.0, -35.5, -110.0), IDENTITY, True),
    "1.2.826.0.2": ((0.8, 0.6, 2.5), (15.25, 40.0, -300.0), FLIPPED_XY, False),
    "1.2.826.0.3": ((0.9, 0.9, 1.0), (0.0, 0.0, 0.0), IDENTITY, False),
    "1.2.826.0.4": ((0.65, 0.65, 2.0), (-100.0, 60.0, 25.0), IDENTITY, True),
}


BESIDE_ROOMS = tuple(
    f"luna_cls.{name}"
    for name in ("errors", "files", "processes", "settings", "startup", "learning.callbacks")
)


def pytest_collection_modifyitems(config, items):
    """The demo first: the longest of all files, begun last, would leave the other workers idle.

    Where single rooms are measured (`--cov=luna_cls.scans`), only quick tests of nothing else are watched:
    watching takes Python up to twice its time.
    """
    items.sort(key=lambda item: item.path.name != "test_demo.py")
    rooms = tuple(room for room in config.getoption("cov_source", None) or () if room is not True)
    modules = {getattr(item, "module", None) for item in items} if rooms else set()  # a notebook has none
    watched = {module for module in modules if module is not None and _is_about(module, rooms)}
    for item in items if rooms else ():
        if getattr(item, "module", None) not in watched or item.get_closest_marker("slow"):
            item.add_marker("no_cover")


def _is_about(module, rooms):
    """Whether all that a test file imports of this project is of these rooms, or of little weight."""
    named = (
        one.__name__ if inspect.ismodule(one) else getattr(one, "__module__", None)
        for one in vars(module).values()
    )
    ours = [name for name in named if isinstance(name, str) and name.startswith("luna_cls.")]
    return any(name.startswith(rooms) for name in ours) and all(
        name.startswith(rooms + BESIDE_ROOMS) for name in ours
    )


@pytest.fixture(scope="session")
def real_data():
    """The folder of real scans and tables."""
    named = os.environ.get("LUNA_CLS_REAL_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "lidc").is_dir():
        pytest.skip(f"needs real scans: no lidc/ in {folder}; set LUNA_CLS_REAL_DATA")
    return folder


@pytest.fixture(scope="session")
def write_scan():
    """A function that writes one MetaImage scan and returns the path of its header."""
    return _write_scan


@pytest.fixture(scope="session")
def run_cli():
    """A function that runs `luna-cls` with some arguments and returns the completed process."""
    return _run_cli


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory):
    """A LUNA16 tree of four scans of 40 x 48 x 56 voxels with ten candidates each, three of them nodules.

    Never write into it: copy it first.
    """
    root = tmp_path_factory.mktemp("small") / "tree"
    rng = np.random.default_rng(16)
    tables = []
    for subset, (uid, (spacing, origin, direction, compressed)) in enumerate(SCANS_OF_SMALL_TREE.items()):
        grid = Grid((40, 48, 56), spacing, origin, direction)
        places_zyx_vox = rng.uniform(3, np.array(grid.shape_zyx) - 4, (10, 3))
        labels = np.repeat([1, 0], [3, 7])
        hu = _smooth_hu(rng, grid.shape_zyx, places_zyx_vox[labels == 1])
        _write_scan(root / f"subset{subset}", uid, hu, spacing, origin, direction, compressed=compressed)
        points = pd.DataFrame(grid.to_world_xyz_mm(places_zyx_vox), columns=["coordX", "coordY", "coordZ"])
        points.insert(0, "seriesuid", uid)
        tables.append(points.assign(**{"class": labels}))
    table = pd.concat(tables)
    nodules = table[table["class"] == 1].drop(columns="class").assign(diameter_mm=8.0)
    nodules.to_csv(root / "annotations.csv", index=False)
    table.sample(frac=1, random_state=16).to_csv(root / "candidates_V2.csv", index=False)
    (root / "seriesuids.csv").write_text("\n".join(SCANS_OF_SMALL_TREE) + "\n")
    return root


@pytest.fixture(scope="session")
def small_store(small_tree, tmp_path_factory):
    """The store of the small tree's 40 cubes, made in one go by one process. Never write into it."""
    from luna_cls.cubes.preparation import prepare
    from luna_cls.scans.luna16 import LunaTree

    tree = LunaTree.open(small_tree)
    return prepare(tree, tree.candidates(), tmp_path_factory.mktemp("small") / "store", workers=1)


@pytest.fixture(scope="session")
def report_folders(small_tree, small_store, tmp_path_factory):
    """A folder of each kind that can be reported, by kind, over the small tree. Never write into them."""
    from report_folders import make_folders

    return make_folders(tmp_path_factory.mktemp("reported"), small_tree, small_store)


@pytest.fixture
def float32_policy():
    """Layers are built in float32, whatever other tests chose."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy(before)


def _smooth_hu(rng, shape_zyx, nodules_zyx_vox):
    """Soft lung of about -800 HU, sd 100, with a bright spot at every nodule."""
    texture = gaussian_filter(rng.normal(size=shape_zyx), 2)
    spots = np.zeros(shape_zyx)
    spots[tuple(np.rint(nodules_zyx_vox).astype(int).T)] = 1
    spots = gaussian_filter(spots, 2.5)
    return np.rint(-800 + 100 * texture / texture.std() + 800 * spots / spots.max()).astype(np.int16)


def _write_scan(
    folder,
    uid,
    hu,
    spacing=(1.0, 1.0, 1.0),
    origin=(0.0, 0.0, 0.0),
    direction=IDENTITY,
    *,
    compressed=False,
):
    Path(folder).mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing([float(mm) for mm in spacing])
    image.SetOrigin([float(mm) for mm in origin])
    image.SetDirection(np.ravel(direction).astype(float).tolist())
    path = Path(folder) / f"{uid}.mhd"
    sitk.WriteImage(image, str(path), useCompression=compressed)
    return path


def _run_cli(*arguments, timeout=300, **options):
    command = [sys.executable, "-m", "luna_cls", *map(str, arguments)]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=timeout,
        **options,
    )


@pytest.fixture
def submission(tmp_path):
    """A hit at 0.9 and a false alarm at 0.6 in a; a missed nodule and an excluded hit in b; c and d empty."""
    points = "seriesuid,coordX,coordY,coordZ"
    files = {
        "marks.csv": f"{points},probability\na,0,0,0,0.9\na,50,0,0,0.6\nb,90,0,0,0.8\n",
        "annotations.csv": f"{points},diameter_mm\na,1,0,0,8\nb,0,0,0,8\n",
        "excluded.csv": f"{points},diameter_mm\nb,90,0,0,-1\n",
        "seriesuids.csv": "a\nb\nc\nd\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    return tmp_path
