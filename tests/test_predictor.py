import errno
import json
import shutil
from pathlib import Path

import keras
import nibabel
import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from test_store_on_a_cluster import _cluster
from typer.testing import CliRunner

from luna_cls.cli import app
from luna_cls.cubes.preparation import prepare
from luna_cls.cubes.store import CubeStore
from luna_cls.errors import InputError
from luna_cls.files import read_series_uids, sha256, write_json
from luna_cls.inference import exports
from luna_cls.inference.options import Options
from luna_cls.inference.predictor import predict
from luna_cls.learning import models
from luna_cls.learning.training import train
from luna_cls.reports.page import write_report
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.phantom import write_phantom
from luna_cls.scans.proposals import propose
from luna_cls.scans.volume import read_volume
from luna_cls.settings import load_settings

POINT = ["seriesuid", "coordX", "coordY", "coordZ"]
TINY = (
    "precision=float32",
    "split.validation_folds=[3]",
    "model.filters=[4]",
    "model.dense_units=4",
    "training.epochs=1",
    "training.batch_size=8",
    "training.steps_per_epoch=4",
)


@pytest.fixture(scope="module")
def run(small_tree, tmp_path_factory):
    """A run of one epoch on folds 0 to 2 of the small tree, validated on fold 3."""
    folder = tmp_path_factory.mktemp("run")
    tree = LunaTree.open(small_tree)
    store = prepare(tree, tree.candidates(), folder / "store", workers=1)
    train(store, load_settings("seed", TINY), folder / "run", say=[].append)
    return folder / "run"


@pytest.fixture(scope="module")
def predicted(run, small_tree, tmp_path_factory):
    """All four scans, read from their folder: what predict returned and the folder it wrote."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    return predict(run / "model.keras", [small_tree], small_tree / "candidates_V2.csv", out), out


@pytest.fixture
def tree(small_tree, tmp_path):
    """A copy of the small tree, to spoil."""
    return shutil.copytree(small_tree, tmp_path / "tree")


def _truncate(tree, subset):
    """Cuts the data of the subset's scan in half; returns its UID."""
    (header,) = (tree / f"subset{subset}").glob("*.mhd")
    (data,) = (path for path in header.parent.glob(f"{header.stem}.*raw"))
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    return header.stem


def _read(path):
    return pd.read_csv(path, dtype={"seriesuid": str, "row": "Int64"})


def test_every_candidate_becomes_a_finding(predicted, small_tree):
    """Four scans of ten candidates give forty findings, each point and its class once."""
    prediction, _ = predicted

    candidates = _read(small_tree / "candidates_V2.csv")[[*POINT, "class"]].sort_values(POINT)
    findings = prediction.findings[[*POINT, "class"]].sort_values(POINT)
    assert prediction.num_scans == 4
    assert prediction.failures.empty
    pd.testing.assert_frame_equal(findings.reset_index(drop=True), candidates.reset_index(drop=True))


def test_findings_are_ranked_scan_by_scan(predicted):
    """The scans come in their files' order, and in each the most probable finding first."""
    findings = predicted[0].findings

    assert list(findings["seriesuid"].unique()) == [f"1.2.826.0.{n}" for n in (1, 2, 3, 4)]
    for _, own in findings.groupby("seriesuid"):
        assert own["logit"].is_monotonic_decreasing
        assert np.ptp(own["logit"]) > 0
    np.testing.assert_allclose(findings["probability"], 1 / (1 + np.exp(-findings["logit"])), rtol=1e-12)


def test_the_files_hold_what_is_returned(predicted):
    """findings.csv and failures.csv read back equal to the last bit, and are all there is."""
    prediction, out = predicted

    assert sorted(path.name for path in out.iterdir()) == [
        "failures.csv",
        "findings.csv",
        "prediction.json",
        "scans",
        "seriesuids.csv",
    ]
    pd.testing.assert_frame_equal(_read(out / "findings.csv"), prediction.findings, check_exact=True)
    assert list(_read(out / "failures.csv").columns) == ["seriesuid", "row", "status", "reason"]


def test_predictions_are_those_of_training(predicted, run):
    """For the validation scan, logits are those train wrote for the same candidates."""
    expected = _read(run / "validation_predictions.csv")

    both = expected.merge(predicted[0].findings, on=POINT, suffixes=("_trained", ""))

    assert len(both) == 10
    np.testing.assert_allclose(both["logit"], both["logit_trained"], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_without_a_list_points_are_proposed(run, tmp_path, run_cli):
    """Of a phantom scan up to 600 points in its lungs are scored, each a finding, best first."""
    tree = write_phantom(tmp_path / "tree", 1, 5, workers=1).root
    (path,) = tree.glob("subset*/*.mhd")

    done = run_cli("predict", run / "model.keras", path, "--out", tmp_path / "out")

    findings = _read(tmp_path / "out" / "findings.csv")
    proposed = propose(read_volume(path))
    assert done.returncode == 0, done.stderr
    assert 100 < len(findings) == len(proposed) <= 600
    assert findings["logit"].is_monotonic_decreasing
    assert set(findings["coordX"].round(6)) == set(proposed["coordX"].round(6))


def test_a_scan_without_lungs_is_listed(run, small_tree, tmp_path):
    """Scans of texture hold no lung: if it is so with every one, the reason is told."""
    with pytest.raises(InputError, match=r"Not one scan could be read.* No lung was found in the scan"):
        predict(run / "model.keras", [small_tree], None, tmp_path / "out")


def test_scans_of_any_format_give_the_same_findings(predicted, run, small_tree, tmp_path):
    """Two scans as NIfTI and NRRD beside two as they are: each logit is the same to 0.001."""
    first, second, *rest = sorted(small_tree.rglob("*.mhd"))
    volume = read_volume(first)
    affine = np.eye(4)
    affine[:3, :3] = volume.grid.direction * volume.grid.spacing_xyz_mm
    affine[:3, 3] = volume.grid.origin_xyz_mm
    ras = nibabel.Nifti1Image(volume.hu.T, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)
    nibabel.save(ras, tmp_path / f"{first.stem}.nii.gz")
    sitk.WriteImage(sitk.ReadImage(str(second)), str(tmp_path / f"{second.stem}.nrrd"))
    scans = [tmp_path / f"{first.stem}.nii.gz", tmp_path / f"{second.stem}.nrrd", *rest]

    made = predict(run / "model.keras", scans, small_tree / "candidates_V2.csv", tmp_path / "out")

    both = predicted[0].findings.merge(made.findings, on=POINT, suffixes=("_mhd", ""))
    assert made.failures.empty
    assert len(both) == 40
    np.testing.assert_allclose(both["logit"], both["logit_mhd"], atol=1e-3)


def test_files_and_folders_give_the_same(predicted, run, small_tree, tmp_path):
    """Naming the four files is as good as naming the folder they lie in."""
    scans = sorted(small_tree.rglob("*.mhd"))

    made = predict(run / "model.keras", scans, small_tree / "candidates_V2.csv", tmp_path / "out")

    pd.testing.assert_frame_equal(made.findings, predicted[0].findings)


def test_candidates_without_class_give_findings_without(predicted, run, small_tree, tmp_path):
    """An unlabelled CSV leaves the column class out and changes no logit."""
    _read(small_tree / "candidates_V2.csv")[POINT].to_csv(tmp_path / "points.csv", index=False)

    made = predict(run / "model.keras", [small_tree], tmp_path / "points.csv", tmp_path / "out")

    assert list(made.findings.columns) == [*POINT, "probability", "logit"]
    pd.testing.assert_frame_equal(made.findings, predicted[0].findings.drop(columns="class"))


@pytest.mark.slow
@pytest.mark.parametrize("subset", [1, 3], ids=["raw", "zraw"])
def test_a_truncated_scan_is_listed_and_the_rest_finishes(run, tree, run_cli, tmp_path, subset):
    """luna-cls predict ends with 3, thirty findings, and the truncated scan with a reason."""
    uid = _truncate(tree, subset)
    out = tmp_path / "out"

    done = run_cli(
        "predict", run / "model.keras", tree, "--candidates", tree / "candidates_V2.csv", "--out", out
    )

    failures = _read(out / "failures.csv")
    assert done.returncode == 3
    assert "failures.csv" in done.stderr.splitlines()[-1]
    assert done.stdout == f"{out / 'findings.csv'}\n"
    assert len(_read(out / "findings.csv")) == 30
    assert failures[["seriesuid", "status"]].to_numpy().tolist() == [[uid, "unreadable"]]
    assert failures["row"].isna().all()
    assert "truncated" in failures["reason"][0]


def test_a_candidate_outside_its_scan_is_listed(run, tree, tmp_path):
    """A point a kilometre away is named by its row, counted from 0; the other forty are scored."""
    candidates = _read(tree / "candidates_V2.csv")
    stray = pd.DataFrame([["1.2.826.0.2", 1e6, 0.0, 0.0, 0]], columns=[*POINT, "class"])
    pd.concat([candidates[:7], stray, candidates[7:]]).to_csv(tmp_path / "c.csv", index=False)

    made = predict(run / "model.keras", [tree], tmp_path / "c.csv", tmp_path / "out")

    assert len(made.findings) == 40
    assert made.num_scans == 4
    assert made.failures[["seriesuid", "row", "status"]].to_numpy().tolist() == [
        ["1.2.826.0.2", 7, "outside"]
    ]
    assert "1000000.0" in made.failures["reason"][0]


def test_a_scan_without_candidates_has_no_findings(run, tree, tmp_path):
    """Candidates of one scan among four give that scan's ten findings and no failure."""
    candidates = _read(tree / "candidates_V2.csv")
    candidates[candidates["seriesuid"] == "1.2.826.0.3"].to_csv(tmp_path / "c.csv", index=False)

    made = predict(run / "model.keras", [tree], tmp_path / "c.csv", tmp_path / "out")

    assert made.findings["seriesuid"].value_counts().to_dict() == {"1.2.826.0.3": 10}
    assert made.failures.empty


def test_progress_counts_scans(run, small_tree, tmp_path):
    """It is told 0 of 4 at the start and 4 of 4 at the end."""
    told = []

    predict(
        run / "model.keras",
        [small_tree],
        small_tree / "candidates_V2.csv",
        tmp_path / "out",
        on_progress=lambda done, total: told.append((done, total)),
    )

    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


def test_candidates_of_other_scans_alone_are_refused(run, small_tree, tmp_path):
    """If no candidate is in any scan given, both sides are named and nothing is written."""
    (tmp_path / "c.csv").write_text("seriesuid,coordX,coordY,coordZ\n9.9.9,1,2,3\n")

    with pytest.raises(InputError, match=r"belongs to a scan given.*1\.2\.826\.0\.1.*9\.9\.9"):
        predict(run / "model.keras", [small_tree], tmp_path / "c.csv", tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_if_no_scan_can_be_read_the_reason_is_told(run, tree, tmp_path):
    """With its only scan truncated, a prediction is refused with the reason, and nothing is written."""
    _truncate(tree, 1)

    with pytest.raises(InputError, match=r"Not one scan could be read.*truncated"):
        predict(run / "model.keras", [tree / "subset1"], tree / "candidates_V2.csv", tmp_path / "out")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("shape", "units"),
    [
        ((31,), 1),
        ((31, 31, 30, 1), 1),
        ((31, 31, 31, 2), 1),
        ((31, 31, 31, 1), 2),
        ((None, None, None, 1), 1),
    ],
    ids=["flat", "no cube", "two channels", "two logits", "any size"],
)
def test_a_model_of_another_shape_is_refused(small_tree, tmp_path, shape, units):
    """A model that does not go from cubes of one size to a logit is refused with its shapes."""
    inputs = keras.Input(shape)
    pooled = keras.layers.GlobalAveragePooling3D()(inputs) if len(shape) > 1 else inputs
    models.save(keras.Model(inputs, keras.layers.Dense(units)(pooled)), tmp_path / "model.keras")

    with pytest.raises(InputError, match=r"model\.keras is not a model from cubes to logits") as refusal:
        predict(tmp_path / "model.keras", [small_tree], small_tree / "candidates_V2.csv", tmp_path / "out")

    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_an_earlier_prediction_is_kept_unless_forced(predicted, run, small_tree, tmp_path):
    """An output that exists is refused untouched; with force it is replaced as a whole."""
    out = shutil.copytree(predicted[1], tmp_path / "out")
    (out / "precious").touch()
    arguments = (run / "model.keras", [small_tree], small_tree / "candidates_V2.csv", out)

    with pytest.raises(InputError, match="out exists already"):
        predict(*arguments)
    assert (out / "precious").exists()

    predict(*arguments, force=True)
    assert sorted(path.name for path in out.iterdir()) == [
        "failures.csv",
        "findings.csv",
        "prediction.json",
        "scans",
        "seriesuids.csv",
    ]


@pytest.fixture
def calibrated(run, tmp_path):
    """A copy of the run's model, and beside it a calibration: logits times 2 plus 1."""
    model = Path(shutil.copy(run / "model.keras", tmp_path / "model.keras"))
    stored = {
        "method": "platt",
        "parameters": {"slope": 2.0, "intercept": 1.0},
        "then": {"method": "prior_shift", "parameters": {"shift": 0.0}},
        "fitted_on": {"model_sha256": sha256(model)},
    }
    write_json(tmp_path / "calibration.json", stored)
    return model


def test_a_calibration_beside_the_model_is_applied(calibrated, predicted, small_tree, tmp_path):
    """Every logit is twice what the model says plus 1, and the probability is that logit's."""
    made = predict(calibrated, [small_tree], small_tree / "candidates_V2.csv", tmp_path / "out")

    plain = predicted[0].findings
    assert made.calibrations == ["platt"]
    np.testing.assert_array_equal(made.findings["logit"], 2 * plain["logit"] + 1)
    np.testing.assert_allclose(
        made.findings["probability"], 1 / (1 + np.exp(-made.findings["logit"])), rtol=1e-15
    )
    pd.testing.assert_frame_equal(made.findings[[*POINT, "class"]], plain[[*POINT, "class"]])


def test_a_calibration_may_be_left_off_or_taken_from_elsewhere(calibrated, predicted, small_tree, tmp_path):
    """'none' gives the model's own logits; a path is read, wherever it is."""
    candidates = small_tree / "candidates_V2.csv"
    elsewhere = (tmp_path / "calibration.json").rename(tmp_path / "elsewhere.json")
    shutil.copy(elsewhere, tmp_path / "calibration.json")

    plain = predict(calibrated, [small_tree], candidates, tmp_path / "plain", Options(calibration="none"))
    (tmp_path / "calibration.json").unlink()
    taken = predict(calibrated, [small_tree], candidates, tmp_path / "taken", Options(calibration=elsewhere))

    assert plain.calibrations == [None]
    pd.testing.assert_frame_equal(plain.findings, predicted[0].findings)
    np.testing.assert_array_equal(taken.findings["logit"], 2 * plain.findings["logit"] + 1)


@pytest.mark.slow
def test_predict_says_what_it_applied(calibrated, small_tree, tmp_path, run_cli):
    """A line on standard error names the calibration and how to leave it off."""
    scans = small_tree, "--candidates", small_tree / "candidates_V2.csv"

    done = run_cli("predict", calibrated, *scans, "--out", tmp_path / "out")

    assert done.returncode == 0
    assert "Calibrated by platt; --calibration none leaves that off" in done.stderr


def test_a_calibration_of_another_model_is_refused(calibrated, small_tree, tmp_path):
    """After another training it does not fit; neither does a path where there is none. Nothing is written."""
    scans = [small_tree], small_tree / "candidates_V2.csv", tmp_path / "out"
    stored = (tmp_path / "calibration.json").read_text().replace(sha256(calibrated), "0" * 64)
    (tmp_path / "calibration.json").write_text(stored)

    with pytest.raises(InputError, match="was fitted to another model than"):
        predict(calibrated, *scans)
    with pytest.raises(InputError, match=r"No calibration at .*nowhere"):
        predict(calibrated, *scans, Options(calibration="nowhere"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_anew_leaves_no_calibration_of_the_earlier_model(run, tmp_path):
    """`--force` replaces the folder of the run as a whole."""
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    (folder / "calibration.json").write_text("{}")

    train(
        CubeStore.open(run.parent / "store"), load_settings("seed", TINY), folder, force=True, say=[].append
    )

    assert (folder / "model.keras").is_file()
    assert not (folder / "calibration.json").exists()


def test_a_scan_named_twice_is_read_once_and_listed(predicted, run, small_tree, tmp_path):
    """Of two files with one UID the first is read; the second is a failure that names both."""
    first = sorted(small_tree.rglob("*.mhd"))[0]
    volume = sitk.ReadImage(str(first))
    sitk.WriteImage(volume, str(tmp_path / f"{first.stem}.nrrd"))
    scans = [*sorted(small_tree.rglob("*.mhd")), tmp_path / f"{first.stem}.nrrd"]

    made = predict(run / "model.keras", scans, small_tree / "candidates_V2.csv", tmp_path / "out")

    pd.testing.assert_frame_equal(made.findings, predicted[0].findings)
    ((uid, row, status, reason),) = made.failures.itertuples(index=False)
    assert (uid, row, status) == (first.stem, pd.NA, "twice")
    assert str(first) in reason
    assert f"{first.stem}.nrrd" in reason


def test_scans_may_be_listed_in_a_csv(predicted, run, small_tree, tmp_path):
    """Paths from the folder of the list on; one that leads nowhere is a failure, and stops no other."""
    tree = shutil.copytree(small_tree, tmp_path / "tree")
    paths = [str(path.relative_to(tmp_path)) for path in sorted(tree.rglob("*.mhd"))]
    pd.DataFrame({"path": [*paths, "gone/9.9.mhd"], "note": "x"}).to_csv(tmp_path / "night.csv", index=False)

    made = predict(
        run / "model.keras", [tmp_path / "night.csv"], tree / "candidates_V2.csv", tmp_path / "out"
    )

    pd.testing.assert_frame_equal(made.findings, predicted[0].findings)
    assert made.failures[["seriesuid", "status"]].to_numpy().tolist() == [["9.9", "unreadable"]]
    assert f"No scan at {tmp_path / 'gone/9.9.mhd'}" in made.failures["reason"][0]


def test_further_scans_are_added(predicted, run, small_tree, tmp_path):
    """Two scans, then all four with resume: the first two are not touched, the tables are those of four."""
    scans, candidates, out = (
        sorted(small_tree.rglob("*.mhd")),
        small_tree / "candidates_V2.csv",
        tmp_path / "o",
    )
    predict(run / "model.keras", scans[:2], candidates, out)
    notes = {path: path.stat().st_mtime_ns for path in out.glob("scans/*/scan.json")}

    made = predict(run / "model.keras", scans, candidates, out, resume=True)

    assert len(notes) == 2
    assert {path: path.stat().st_mtime_ns for path in notes} == notes
    pd.testing.assert_frame_equal(made.findings, predicted[0].findings)
    assert (out / "findings.csv").read_bytes() == (predicted[1] / "findings.csv").read_bytes()


def test_a_model_and_itself_are_the_model(predicted, run, small_tree, tmp_path):
    """The mean of equal logits is that logit; both are named in prediction.json."""
    model = run / "model.keras"

    made = predict(
        model, [small_tree], small_tree / "candidates_V2.csv", tmp_path / "out", Options(ensemble=(model,))
    )

    pd.testing.assert_frame_equal(made.findings, predicted[0].findings)
    about = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert [entry["sha256"] for entry in about["models"]] == [sha256(model)] * 2
    assert about["model"] == "2 models"


def test_mirrored_candidates_have_equal_logits_when_averaged_over_symmetries(run, small_tree, tmp_path):
    """Seen in 16 ways, a scan and its mirror image give the same logits, to rounding; in one way not."""
    path = sorted(small_tree.rglob("*.mhd"))[0]
    candidates = _read(small_tree / "candidates_V2.csv")
    image = sitk.ReadImage(str(path))
    mirrored = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[:, :, ::-1])
    mirrored.SetSpacing(image.GetSpacing())
    end = image.TransformIndexToPhysicalPoint((image.GetSize()[0] - 1, 0, 0))[0]
    mirrored.SetOrigin((-end, *image.GetOrigin()[1:]))
    (tmp_path / "mirror").mkdir()
    sitk.WriteImage(mirrored, str(tmp_path / "mirror" / path.name))
    own = candidates[candidates["seriesuid"] == path.stem]
    own.to_csv(tmp_path / "own.csv", index=False)
    own.assign(coordX=-own["coordX"]).to_csv(tmp_path / "mirror.csv", index=False)
    apart = {}
    for kind in ("none", "in_plane"):
        options = Options(symmetries=kind)
        straight = predict(run / "model.keras", [path], tmp_path / "own.csv", tmp_path / kind, options)
        other = predict(
            run / "model.keras",
            [tmp_path / "mirror"],
            tmp_path / "mirror.csv",
            tmp_path / f"{kind}_m",
            options,
        )
        both = straight.findings.merge(other.findings.assign(coordX=-other.findings["coordX"]), on=POINT)
        assert len(both) == 10
        apart[kind] = (both["logit_x"] - both["logit_y"]).abs().max()

    assert apart["in_plane"] < 1e-4 < apart["none"]


def test_a_format_that_cannot_be_written_is_listed(run, small_tree, tmp_path, monkeypatch):
    """Findings of that scan are there all the same, and the reason is told; the other scans are as ever."""

    def fails_for_one(findings, folder):
        if findings.source.series_uid == "1.2.826.0.2":
            raise InputError("It has no table position.")
        (folder / "x.json").touch()

    monkeypatch.setitem(exports.WRITERS, "json", fails_for_one)

    made = predict(
        run / "model.keras",
        [small_tree],
        small_tree / "candidates_V2.csv",
        tmp_path / "out",
        Options(formats=("json",)),
    )

    assert len(made.findings) == 40
    assert made.failures[["seriesuid", "status", "reason"]].to_numpy().tolist() == [
        ["1.2.826.0.2", "export", "json: It has no table position."]
    ]
    assert len(list(tmp_path.glob("out/scans/*/x.json"))) == 3
    assert (tmp_path / "out" / "scans" / "1.2.826.0.2" / "findings.csv").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"formats": ("json", "word")}, "word"),
        ({"symmetries": "all"}, r"--symmetries is one of none, in_plane, cube\. Received: 'all'"),
        ({"merge_mm": -1.0}, r"--merge is a distance in mm, more than 0\. Received: -1"),
        ({"threshold": 1.5}, r"--threshold is a probability, from 0 to 1\. Received: 1\.5"),
        ({"most": 0}, r"--most is a number from 1 up\. Received: 0"),
        ({"explain": -1}, r"--explain is a number from 0 up\. Received: -1"),
        ({"calibration": "x.json", "ensemble": ("phantom",)}, "--calibration takes a file for one model"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(run, small_tree, tmp_path, options, words):
    """In one line, before any scan is read; nothing is written."""
    with pytest.raises(InputError, match=words):
        predict(run / "model.keras", [small_tree], None, tmp_path / "out", Options(**options))

    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_cluster_gives_the_same_findings(predicted, run, small_tree, tmp_path):
    """A Dask worker, a process of its own, writes the bytes that this process writes."""
    worker = "distributed.cli.dask_worker", "--nworkers", "1", "--nthreads", "1"
    with _cluster(tmp_path, worker, 1) as address:
        predict(
            run / "model.keras",
            [small_tree],
            small_tree / "candidates_V2.csv",
            tmp_path / "out",
            dask=address,
        )

    for path in predicted[1].rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(predicted[1])).read_bytes() == path.read_bytes()


def test_a_bundle_of_a_run_predicts_as_the_run_does(predicted, run, small_tree, tmp_path):
    """Exported by the command line to a zip and read from there: the same findings, to the last bit."""
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "b.zip"), "--name", "tiny"])

    made = predict(tmp_path / "b.zip", [small_tree], small_tree / "candidates_V2.csv", tmp_path / "out")

    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'b.zip'}\n"
    pd.testing.assert_frame_equal(made.findings, predicted[0].findings)
    assert json.loads((tmp_path / "out" / "prediction.json").read_text())["model"] == "tiny"


@pytest.mark.slow
def test_a_run_is_exported_to_onnx_by_the_command_line(run, tmp_path):
    """The largest difference from Keras is told, the path is printed, and the model is there."""
    done = CliRunner().invoke(app, ["export", str(run), "--out", str(tmp_path / "onnx"), "--format", "onnx"])

    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'onnx'}\n"
    assert "Logits differ from Keras' by" in done.stderr
    assert list(tmp_path.glob("onnx/*.onnx"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone", "--out", "new"], "No run at gone"),
        (["gone", "--out", "new", "--format", "onnx"], "No model at gone"),
        (["gone", "--out", "new", "--format", "onnx", "--name", "x"], "--name and --licence are for bundles"),
    ],
)
def test_a_wrong_export_is_one_line(tmp_path, monkeypatch, arguments, words):
    """With status 1, and nothing is made."""
    monkeypatch.chdir(tmp_path)

    done = CliRunner().invoke(app, ["export", *arguments])

    assert done.exit_code == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_writer_that_breaks_takes_nothing_from_the_findings(run, small_tree, tmp_path, monkeypatch):
    """Whatever it raises is a line in failures.csv with its name; a full disk ends everything."""
    out, candidates = tmp_path / "out", small_tree / "candidates_V2.csv"

    def breaks(findings, folder):
        raise KeyError("1.2.3")

    def finds_the_disk_full(findings, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setitem(exports.WRITERS, "json", breaks)
    made = predict(run / "model.keras", [small_tree], candidates, out, Options(formats=("json",)))
    monkeypatch.setitem(exports.WRITERS, "json", finds_the_disk_full)
    with pytest.raises(OSError, match="No space left"):
        predict(run / "model.keras", [small_tree], candidates, tmp_path / "full", Options(formats=("json",)))

    assert len(made.findings) == 40
    assert made.failures["reason"].tolist() == ["json: KeyError: '1.2.3'"] * 4
    assert not (tmp_path / "full").exists()
    page = write_report(out).read_text()
    assert "4 findings files could not be written." in page
    assert "4 of 4" in page


def test_earlier_findings_outlive_a_disk_that_is_away(run, tree, tmp_path):
    """With its scans gone a resumed prediction is refused; back in place, all is as it was, untouched."""
    out, candidates = tmp_path / "out", tree / "candidates_V2.csv"
    listed = tmp_path / "list.csv"
    pd.DataFrame({"path": sorted(map(str, tree.rglob("*.mhd")))}).to_csv(listed, index=False)
    predict(run / "model.keras", [listed], candidates, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    away = {path: path.rename(tmp_path / path.name) for path in tree.glob("subset*")}

    with pytest.raises(InputError, match=r"Not one scan could be read\. The first reason: No scan at"):
        predict(run / "model.keras", [listed], candidates, out, resume=True)
    assert {path: path.stat().st_mtime_ns for path in before} == before

    for path, place in away.items():
        place.rename(path)
    made = predict(run / "model.keras", [listed], candidates, out, resume=True)
    assert len(made.findings) == 40
    notes = [path for path in before if path.name == "scan.json"]
    assert {path: path.stat().st_mtime_ns for path in notes} == {path: before[path] for path in notes}


def test_a_scan_without_findings_is_a_result(run, tree, tmp_path):
    """One scan has no candidate, the other cannot be read: no finding, one failure."""
    _truncate(tree, 1)
    candidates = _read(tree / "candidates_V2.csv")
    candidates[candidates["seriesuid"] == "1.2.826.0.2"].to_csv(tmp_path / "c.csv", index=False)

    made = predict(
        run / "model.keras", [tree / "subset0", tree / "subset1"], tmp_path / "c.csv", tmp_path / "out"
    )

    assert (made.num_scans, made.num_findings, len(made.failures)) == (1, 0, 1)
    assert len(pd.read_csv(tmp_path / "out" / "findings.csv")) == 0


def test_names_with_blanks_are_names(run, small_tree, tmp_path):
    """'patient 1' and 'patient 2' are two scans, in every list and on the page."""
    folder = tmp_path / "scans"
    folder.mkdir()
    tables = []
    candidates = _read(small_tree / "candidates_V2.csv")
    for number, path in enumerate(sorted(small_tree.rglob("*.mhd"))[:2], 1):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(folder / f"patient {number}.nrrd"))
        tables.append(candidates[candidates["seriesuid"] == path.stem].assign(seriesuid=f"patient {number}"))
    pd.concat(tables).to_csv(tmp_path / "c.csv", index=False)

    predict(run / "model.keras", [folder], tmp_path / "c.csv", tmp_path / "out")

    assert read_series_uids(tmp_path / "out" / "seriesuids.csv") == ["patient 1", "patient 2"]
    assert "2 of 2" in write_report(tmp_path / "out").read_text()


def test_what_predict_has_made_is_no_scan(run, tree, tmp_path):
    """An output within the folder that is searched: spheres on the grid of a scan are not read as scans."""
    out, candidates = tree / "out", tree / "candidates_V2.csv"
    options = Options(formats=("nifti",), threshold=0.0)
    made = predict(run / "model.keras", [tree], candidates, out, options)

    again = predict(run / "model.keras", [tree], candidates, out, options, resume=True)

    assert len(list(out.rglob("*.nii.gz"))) == 8
    assert again.num_scans == made.num_scans == 4
    assert again.failures.empty
