"""A night's worth of scans: some damaged, in bounded memory, killed in the middle."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk

from luna_cls.learning import models
from luna_cls.scans.phantom import Acquisition, write_phantom

SCANS, FEW = 500, 20
SMALL = Acquisition(num_slices=(24, 30), num_pixels=(128, 144), pixel_mm=(1.9, 2.2), slice_mm=(3.0,))

pytestmark = pytest.mark.slow


def _rewrite(path, **fields):
    """Changes fields of a MetaImage header in one file with its data."""
    header, mark, data = path.read_bytes().partition(b"ElementDataFile = LOCAL\n")
    lines = [line.split(" = ") for line in header.decode().splitlines()]
    text = "".join(f"{key} = {fields.get(key, value)}\n" for key, value in lines)
    path.write_bytes(text.encode() + mark + data)


def _as_mask(path):
    sitk.WriteImage(sitk.Cast(sitk.ReadImage(str(path)) > 0, sitk.sitkUInt8), str(path))


DAMAGES = {  # how, and what the line in failures.csv says of it
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "ElementDataFile"),
    "text": (lambda path: path.write_text("Patient did not come.\n"), "ElementDataFile"),
    "more slices than there are": (lambda path: _rewrite(path, DimSize="128 128 900"), "another size"),
    "a mask": (_as_mask, "8-bit"),
    "no spacing": (lambda path: _rewrite(path, ElementSpacing="0 0 0"), "[Ss]pacing"),
    "skewed": (lambda path: _rewrite(path, TransformMatrix="1 0.5 0 0 1 0 0 0 1"), "orthonormal"),
    "data elsewhere": (
        lambda path: path.write_bytes(path.read_bytes().replace(b"LOCAL", b"/x/y.raw")),
        "y.raw",
    ),
    "noise": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(9000)), "ElementDataFile"),
    "bits turned over": (lambda path: path.write_bytes(path.read_bytes()[:-40] + bytes(40)), "damaged"),
}


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """500 scans of five phantoms with twelve candidates each; ten are damaged, each in its own way."""
    folder = tmp_path_factory.mktemp("night")
    tree = write_phantom(
        folder / "tree", 5, 77, num_nodules=3, imbalance=5, workers=2, acquisition=SMALL
    ).root
    points = pd.read_csv(tree / "candidates_V2.csv", dtype={"seriesuid": str})
    kinds = []
    for header in sorted(tree.rglob("subset*/*.mhd")):
        sitk.WriteImage(sitk.ReadImage(str(header)), str(folder / "kind.mha"), useCompression=True)
        own = points[points["seriesuid"] == header.stem].head(12)
        kinds.append(((folder / "kind.mha").read_bytes(), own))
    (folder / "scans").mkdir()
    tables = []
    for number in range(SCANS):
        content, own = kinds[number % len(kinds)]
        uid = f"1.2.{number:03}"
        (folder / "scans" / f"{uid}.mha").write_bytes(content)
        tables.append(own.assign(seriesuid=uid))
    pd.concat(tables).to_csv(folder / "candidates.csv", index=False)
    for number, (damage, _) in zip(range(7, SCANS, SCANS // len(DAMAGES)), DAMAGES.values(), strict=True):
        damage(folder / "scans" / f"1.2.{number:03}.mha")
    for number in range(FEW):
        few = folder / "few" / f"2.2.{number:03}.mha"
        few.parent.mkdir(exist_ok=True)
        few.write_bytes(kinds[number % len(kinds)][0])
    pd.concat(
        own.assign(seriesuid=f"2.2.{number:03}")
        for number, (_, own) in zip(range(FEW), kinds * FEW, strict=False)
    ).to_csv(folder / "few.csv", index=False)
    models.save(models.get("seed_cnn", filters=(4,), dense_units=4), folder / "model.keras")
    return folder


def _begin(night, scans, candidates, out, *options):
    command = [sys.executable, "-m", "luna_cls", "predict", "model.keras", scans, "--candidates", candidates]
    command += ["--formats", "json", "--out", str(out), *options]
    with out.with_suffix(".txt").open("w") as errors:
        return subprocess.Popen(command, cwd=night, stdout=subprocess.DEVNULL, stderr=errors)


def _ended(process):
    """Exit status, and the most memory that the process ever had, in MB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024


@pytest.fixture(scope="module")
def predicted(night):
    """The whole night in one go: its folder, exit status and peak memory."""
    out = night / "whole"
    return out, *_ended(_begin(night, "scans", "candidates.csv", out))


def test_ten_damaged_scans_stop_none_of_the_other_490(night, predicted):
    """490 x 12 findings, ten lines in failures.csv that say what each scan suffers from, exit status 3."""
    out, status, _ = predicted

    findings, failures = (pd.read_csv(out / f"{name}.csv") for name in ("findings", "failures"))

    assert status == 3
    assert len(findings) == 490 * 12
    assert findings["seriesuid"].nunique() == 490
    assert len(failures) == 10
    assert (failures["status"] == "unreadable").all()
    for reason, (_, expected) in zip(failures["reason"], DAMAGES.values(), strict=True):
        assert pd.Series([reason]).str.contains(expected).all(), reason
    assert len((out / "seriesuids.csv").read_text().split()) == 500
    assert len(list((out / "scans").iterdir())) == 490
    told = (night / "whole.txt").read_text()
    assert "Traceback" not in told
    assert "500 of 500" in told
    assert "scans/min" in told


def test_memory_does_not_grow_with_the_number_of_scans(night, predicted):
    """500 scans take at most a tenth more than 20 do at their peak."""
    status, few_mb = _ended(_begin(night, "few", "few.csv", night / "some"))

    assert status == 0
    assert predicted[2] <= 1.1 * few_mb


def test_killed_and_resumed_it_leaves_the_same_bytes(night, predicted):
    """Killed twice without warning while it writes, it goes on, and every file ends as in one go."""
    out = night / "killed"
    for least in (60, 250):
        process = _begin(night, "scans", "candidates.csv", out, "--resume")
        while process.poll() is None and len(list(out.glob("scans/[0-9]*"))) < least:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        _ended(process)
        assert not (out / "findings.csv").exists()
    notes = {path: path.stat().st_mtime_ns for path in out.glob("scans/[0-9]*/scan.json")}
    assert 250 <= len(notes) < 490

    status, _ = _ended(_begin(night, "scans", "candidates.csv", out, "--resume"))

    assert status == 3
    assert {path: path.stat().st_mtime_ns for path in notes} == notes
    assert _content(out) == _content(predicted[0])


def test_a_scan_that_has_changed_is_read_again(night, predicted):
    """Of 500, one is replaced and one is mended: both are read, no other; what else was there stays."""
    whole = predicted[0]
    before = {path.parent.name: path.stat().st_mtime_ns for path in whole.glob("scans/*/scan.json")}
    (night / "scans" / "1.2.001.mha").write_bytes((night / "scans" / "1.2.002.mha").read_bytes())
    (night / "scans" / "1.2.007.mha").write_bytes((night / "scans" / "1.2.002.mha").read_bytes())

    status, _ = _ended(_begin(night, "scans", "candidates.csv", whole, "--resume"))

    after = {path.parent.name: path.stat().st_mtime_ns for path in whole.glob("scans/*/scan.json")}
    assert status == 3
    assert {uid for uid, when in after.items() if before.get(uid) != when} == {"1.2.001", "1.2.007"}
    assert len(pd.read_csv(whole / "failures.csv").query("status == 'unreadable'")) == 9


def _content(folder):
    """Every file of a folder but its page, which no option of these makes: name and bytes."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    files.pop("report.html")
    assert json.loads(files["prediction.json"])["formats"] == ["json"]
    return files
