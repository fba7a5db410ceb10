"""What the names in the documentation's examples stand for: small, and made once.

Every page is run in a folder of its own, in which these are put in place when a line first reads them:

| name | is |
|---|---|
| `LUNA16` | a LUNA16 tree: a scan in each of `subset0` to `subset9`, the CSVs, `evaluationScript` |
| `store` | what `luna-cls prepare LUNA16 store` leaves |
| `run` | what `luna-cls train store run --val-folds 8 --set split.test_folds=[9]` leaves |
| `findings` | what `luna-cls predict run LUNA16/subset9 --candidates LUNA16/candidates_V2.csv` leaves |
| `submission.csv`, `A.csv`, `B.csv` | LUNA16 submissions on all scans of `LUNA16` |
| `scan.mhd`, `scan.nii.gz` | a scan |
| `A_FOLDER_OF_DICOM` | a CT series |
| `NIGHT` | a folder of two scans |
| `annotations.csv`, `annotations_excluded.csv`, `candidates.csv`, `seriesuids.csv` | LUNA16's tables |
"""

import locale
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk

from luna_cls.files import clear, require_new
from luna_cls.scans.phantom import Acquisition, write_phantom
from luna_cls.scans.phantom.tree import MARK, PhantomTree
from luna_cls.scans.volume import read_volume

NUM_SCANS, NUM_MADE = 10, 2
TABLES = (
    "annotations.csv",
    "annotations_excluded.csv",
    "candidates_V2.csv",
    "seriesuids.csv",
    "scans.csv",
    "nodules.csv",
)
COARSE = Acquisition((40, 40), (112, 120), (2.6, 2.8), (4.0,), noise_hu=(5.0, 10.0), flipped_share=0.0)


class StandIns:
    """The stand-ins, each made when it is first asked for.

    Args:
        folder: Where they are kept.
        run_cli: Runs `luna-cls` with some arguments in a folder, cut short.
    """

    def __init__(self, folder: Path, run_cli: Callable[..., object]) -> None:
        self.folder, self.run_cli = folder, run_cli

    def path(self, name: str) -> Path:
        """Where the stand-in of a name is."""
        path = self.folder / name
        if not path.exists():
            MAKERS[name](self, path)
        return path

    def put(self, name: str, folder: Path) -> None:
        """Puts the stand-in of a name into a folder, where it may be changed."""
        source, target = self.path(name), folder / name
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy(source, target)
        if name == "scan.mhd":  # its voxels lie beside it
            shutil.copy(source.with_suffix(".zraw"), folder)

    def put_store_of_three_folds(self, path: Path) -> None:
        """Puts a store of the first three scans there: the least that can be crossed."""
        made = self.folder / "three"
        if not made.exists():
            self.phantom(self.folder / "LUNA3", 3)
            self.run_cli(self.folder, ("prepare", "LUNA3", "three", "--margin", "5"))
        shutil.copytree(made, path)

    def write_phantom(
        self, out: Path, num_scans: int, *_: object, force: bool = False, **__: object
    ) -> PhantomTree:
        """Takes the place of `luna_cls.scans.phantom.write_phantom`."""
        require_new(out, force=force, sign=MARK)
        clear(out)
        self.phantom(out, num_scans)
        labels = pd.read_csv(out / "candidates_V2.csv")["class"]
        return PhantomTree(out, int(labels.sum()), int((labels == 0).sum()))

    def phantom(self, path: Path, num_scans: int = NUM_SCANS) -> None:
        """A phantom of ten scans or fewer: two coarse ones, under a UID for each scan."""
        made = self.folder / "made"
        if not made.exists():
            write_phantom(made, NUM_MADE, 1, num_nodules=3, imbalance=6, workers=1, acquisition=COARSE)
        uids = (made / "seriesuids.csv").read_text().split()
        num_scans = min(num_scans, NUM_SCANS)
        names = {index: f"2.25.{index + 1}" for index in range(num_scans)}
        for index, name in names.items():
            old = uids[index % NUM_MADE]
            for found in made.rglob(f"{old}.*"):
                folder = f"subset{index}" if found.parent.name.startswith("subset") else found.parent.name
                target = path / folder / (name + found.suffix)
                target.parent.mkdir(parents=True, exist_ok=True)
                if found.suffix == ".mhd":
                    target.write_text(found.read_text().replace(old, name))
                else:
                    shutil.copy(found, target)
        for table in TABLES:
            if table == "seriesuids.csv":
                (path / table).write_text("\n".join(names.values()) + "\n")
                continue
            rows = pd.read_csv(made / table, dtype={"seriesuid": str})
            copies = [
                rows[rows["seriesuid"] == uids[index % NUM_MADE]].assign(seriesuid=name)
                for index, name in names.items()
            ]
            pd.concat(copies).to_csv(path / table, index=False)
        shutil.copy(made / "phantom.json", path)


def _luna16(stand_ins: StandIns, path: Path) -> None:
    stand_ins.phantom(path)
    (path / "phantom.json").unlink()
    scripts = path / "evaluationScript" / "annotations"
    scripts.mkdir(parents=True)
    (path / "annotations_excluded.csv").rename(scripts / "annotations_excluded.csv")


def _made_by(*arguments: str) -> Callable[[StandIns, Path], None]:
    """What a command makes of other stand-ins, which it names."""

    def make(stand_ins: StandIns, path: Path) -> None:
        for argument in arguments:
            if argument.split("/")[0] in MAKERS and argument != path.name:
                stand_ins.path(argument.split("/")[0])
        stand_ins.run_cli(stand_ins.folder, arguments)

    return make


def _submission(seed: int) -> Callable[[StandIns, Path], None]:
    def make(stand_ins: StandIns, path: Path) -> None:
        rows = pd.read_csv(stand_ins.path("LUNA16") / "candidates_V2.csv", dtype={"seriesuid": str})
        noise = np.random.default_rng(seed).normal(size=len(rows))
        probability = 1 / (1 + np.exp(2 - 3 * rows["class"] - noise))
        rows.drop(columns="class").assign(probability=probability).to_csv(path, index=False)

    return make


def _first_scan(stand_ins: StandIns) -> Path:
    return next((stand_ins.path("LUNA16") / "subset0").glob("*.mhd"))


def _scan(stand_ins: StandIns, path: Path) -> None:
    sitk.WriteImage(sitk.ReadImage(str(_first_scan(stand_ins))), str(path), useCompression=True)


def _night(stand_ins: StandIns, path: Path) -> None:
    path.mkdir()
    for subset in ("subset0", "subset1"):
        for file in (stand_ins.path("LUNA16") / subset).iterdir():
            shutil.copy(file, path)


def _dicom(stand_ins: StandIns, path: Path) -> None:
    """One file a slice, with what a reader of a CT series asks for."""
    volume = read_volume(_first_scan(stand_ins))
    path.mkdir()
    before = locale.setlocale(locale.LC_ALL)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    x_mm, y_mm, _ = volume.grid.spacing_xyz_mm
    for z, values in enumerate(volume.hu):
        image = sitk.GetImageFromArray(values)
        image.SetSpacing([x_mm, y_mm])
        place = volume.grid.to_world_xyz_mm([[z, 0, 0]])[0]
        tags = {
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"2.25.900.{z + 1}",
            "0008|0060": "CT",
            "0010|0020": "nobody",
            "0018|0050": str(volume.grid.spacing_xyz_mm[2]),
            "0020|000d": "2.25.901",
            "0020|000e": "2.25.902",
            "0020|0013": str(z + 1),
            "0020|0032": "\\".join(f"{mm:.6g}" for mm in place),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0052": "2.25.903",
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(path / f"{z:03}.dcm"))
        writer.Execute(image)
    locale.setlocale(locale.LC_ALL, before)  # GDCM writes in the locale C, and leaves the process in it


def _table(*parts: str) -> Callable[[StandIns, Path], None]:
    def make(stand_ins: StandIns, path: Path) -> None:
        shutil.copy(stand_ins.path("LUNA16").joinpath(*parts), path)

    return make


MAKERS: dict[str, Callable[[StandIns, Path], None]] = {
    "LUNA16": _luna16,
    "store": _made_by("prepare", "LUNA16", "store"),
    "run": _made_by("train", "store", "run", "--val-folds", "8", "--set", "split.test_folds=[9]"),
    "findings": _made_by(
        "predict", "run", "LUNA16/subset9", "--candidates", "LUNA16/candidates_V2.csv", "--out", "findings"
    ),
    "submission.csv": _submission(1),
    "A.csv": _submission(1),
    "B.csv": _submission(2),
    "scan.mhd": _scan,
    "scan.nii.gz": _scan,
    "A_FOLDER_OF_DICOM": _dicom,
    "NIGHT": _night,
    "annotations.csv": _table("annotations.csv"),
    "annotations_excluded.csv": _table("evaluationScript", "annotations", "annotations_excluded.csv"),
    "candidates.csv": _table("candidates_V2.csv"),
    "seriesuids.csv": _table("seriesuids.csv"),
}
