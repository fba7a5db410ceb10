"""The model that comes with the package."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.errors import InputError
from luna_cls.files import COORDINATES
from luna_cls.inference.bundle import open_bundles
from luna_cls.learning.models import PRETRAINED, load, path_of
from luna_cls.scans.luna16 import LunaTree
from luna_cls.scans.phantom import Acquisition, write_phantom
from luna_cls.scans.volume import read_volume

CARD = json.loads(PRETRAINED["phantom"].with_name("bundle.json").read_text())


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """Two phantom scans that the model has not seen, eight nodules in each."""
    taken = Acquisition(num_slices=(70, 70), slice_mm=(2.5,))
    return write_phantom(
        tmp_path_factory.mktemp("unseen") / "tree", 2, 4321, num_nodules=8, imbalance=15, acquisition=taken
    ).root


def test_it_is_the_one_its_card_tells_of():
    """At most 4 MB, with the SHA-256 of the card, which says what it was made from and what it is not for."""
    content = PRETRAINED["phantom"].read_bytes()

    assert len(content) <= 4_000_000
    assert hashlib.sha256(content).hexdigest() == CARD["model_sha256"]
    assert CARD["research_only"] == "For research, not for diagnosis."
    assert CARD["made_by"] == "make model"
    assert 0.3 < CARD["metrics"]["cpm"] < 0.97


def test_it_is_a_bundle():
    """Its name opens one bundle of cubes of 31 mm, whose threshold 0.714 is the card's logit of 0.915."""
    (bundle,) = open_bundles("phantom")

    assert bundle.name == "phantom"
    assert bundle.spec == CubeSpec(31, 1.0)
    assert bundle.calibration is None
    assert bundle.threshold == pytest.approx(expit(CARD["operating_point"]["threshold_logit"]))
    assert bundle.card == CARD


def test_it_is_known_by_its_name():
    """'phantom' stands for its file; another word is a path, and the message for it names what there is."""
    assert path_of("phantom") == PRETRAINED["phantom"]
    with pytest.raises(InputError, match=r"No model at phantoms\. .* comes with luna_cls: phantom\."):
        load("phantoms")


@pytest.mark.slow
def test_it_ranks_candidates_of_scans_it_has_not_seen(phantom, tmp_path, run_cli):
    """From the command line and without a training: AUC over 0.93 on two new phantom scans."""
    listed = ["--candidates", phantom / "candidates_V2.csv"]

    done = run_cli("predict", "phantom", phantom, *listed, "--out", tmp_path / "out")

    assert done.returncode == 0, done.stderr
    findings = pd.read_csv(tmp_path / "out" / "findings.csv")
    assert findings["class"].sum() > 15
    assert roc_auc_score(findings["class"], findings["logit"]) > 0.93


@pytest.mark.slow
@pytest.mark.real_data
def test_it_ranks_real_candidates(real_data):
    """Trained on nothing real, it ranks the 157 real candidates with an AUC of at least 0.98."""
    tree = LunaTree.open(real_data / "lidc")
    candidates, model = tree.candidates(), load("phantom")
    logits, labels = [], []
    for uid, points in candidates.groupby("seriesuid"):
        cubes = cut_cubes(read_volume(tree.scan_paths[uid]), points[COORDINATES])
        logits.append(model.predict(cubes[..., None], verbose=0).ravel())
        labels.append(points["class"].to_numpy())

    assert len(candidates) == 157
    assert roc_auc_score(np.concatenate(labels), np.concatenate(logits)) >= 0.98
