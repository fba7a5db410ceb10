import gzip

import keras
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from luna_cls.cubes.cutting import CubeSpec, cut_cubes
from luna_cls.errors import InputError
from luna_cls.inference.saliency import LUNG_HU, saliency, write_saliency
from luna_cls.learning import models
from luna_cls.scans.grid import Grid
from luna_cls.scans.volume import CTVolume, read_volume

NETWORKS = {
    "seed_cnn": {"size_vox": 12, "filters": (4, 8), "dense_units": 8},
    "resnet": {"size_vox": 12, "filters": (4, 8)},
    "contextual": {"size_vox": 12, "contexts_vox": (8, 12), "filters": (4,), "dense_units": 8},
}


def _cubes(size_vox, count=3):
    rng = np.random.default_rng(4)
    return rng.integers(-1000, 300, (count, size_vox, size_vox, size_vox)).astype(np.int16)


def _above_lung(model, cubes):
    """Each cube's logit less that of nothing but lung."""
    lung = np.full((1, *cubes.shape[1:]), LUNG_HU, np.int16)
    logits = np.asarray(model.predict_on_batch(np.concatenate([cubes, lung])[..., None])).ravel()
    return logits[:-1] - logits[-1]


def _model(network, size_vox):
    """A model of some layers behind the window."""
    parts = models.seed_cnn(size_vox, filters=(1,)).layers[:2]
    return keras.Sequential([keras.Input((size_vox,) * 3 + (1,), dtype="int16"), *parts, *network])


@pytest.mark.usefixtures("float32_policy")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_map_adds_up_to_the_logit(name):
    """The sum over a cube is its logit less that of a cube of lung, within 2 % and 0.002."""
    model, cubes = models.get(name, **NETWORKS[name]), _cubes(12)

    maps = saliency(model, cubes, steps=64)

    assert maps.shape == cubes.shape
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), _above_lung(model, cubes), rtol=0.02, atol=0.002)


@pytest.mark.usefixtures("float32_policy")
def test_a_model_of_bfloat16_is_explained_in_float32():
    """It gives the very maps that its weights give in float32, and goes on in bfloat16."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    model, cubes = models.get("seed_cnn", **NETWORKS["seed_cnn"]), _cubes(12, 1)
    keras.config.set_dtype_policy("float32")
    same = models.get("seed_cnn", **NETWORKS["seed_cnn"])
    same.set_weights(model.get_weights())

    maps = saliency(model, cubes)

    np.testing.assert_array_equal(maps, saliency(same, cubes))
    assert model.layers[2].compute_dtype == "bfloat16"


@pytest.mark.usefixtures("float32_policy")
def test_of_a_linear_model_each_voxel_adds_its_weight_times_its_change():
    """Weight 3 on one voxel of 200 HU alone: 3 (200 + 850) / 1,400 = 2.25 logits, all of them around it."""
    weights = np.zeros((9, 9, 9))
    weights[2, 4, 6] = 3.0
    model = _model([keras.layers.Flatten(), keras.layers.Dense(1, name="logit")], 9)
    model.layers[-1].set_weights([weights.reshape(-1, 1), np.zeros(1)])
    cube = np.full((1, 9, 9, 9), -400, np.int16)
    cube[0, 2, 4, 6] = 200

    (found,) = saliency(model, cube)

    assert found.sum() == pytest.approx(2.25, rel=1e-5)
    assert np.unravel_index(found.argmax(), found.shape) == (2, 4, 6)
    z, y, x = np.ogrid[:9, :9, :9]
    assert found[(z - 2) ** 2 + (y - 4) ** 2 + (x - 6) ** 2 <= 9].sum() > 0.97 * 2.25


@pytest.mark.usefixtures("float32_policy")
def test_what_lies_beyond_the_window_is_explained_too():
    """Bone of 3,000 HU counts as 400 HU: the window's flat end takes nothing away."""
    model = _model([keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(1, name="logit")], 5)
    model.layers[-1].set_weights([np.full((1, 1), 125.0), np.zeros(1)])
    cube = np.full((1, 5, 5, 5), LUNG_HU, np.int16)
    cube[0, 2, 2, 2] = 3000

    (found,) = saliency(model, cube)

    assert found.sum() == pytest.approx((400 - LUNG_HU) / 1400, rel=1e-5)
    assert found.argmax() == found.size // 2


@pytest.mark.usefixtures("float32_policy")
def test_what_lowers_the_logit_is_negative():
    """A detector of minus the density: brighter than lung is below 0, air above."""
    model = _model([keras.layers.GlobalAveragePooling3D(), keras.layers.Dense(1, name="logit")], 12)
    model.layers[-1].set_weights([np.full((1, 1), -1.0), np.zeros(1)])
    cube = np.full((1, 12, 12, 12), 0, np.int16)
    cube[:, :6] = -1000

    (found,) = saliency(model, cube)

    assert found[:2].min() > 0
    assert found[-2:].max() < 0


@pytest.mark.parametrize("center_xyz_mm", [(15.0, 15.0, 15.0), (12.6, 16.2, 14.1)], ids=["middle", "aside"])
def test_of_a_nodule_the_shipped_model_looks_at_the_nodule(center_xyz_mm):
    """A ball of 8 mm in lung: most of what raises the logit lies within 3 mm of it, and it does raise it."""
    rng = np.random.default_rng(1)
    z, y, x = np.ogrid[:31, :31, :31]
    cx, cy, cz = center_xyz_mm
    away_mm = np.sqrt((z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2)
    part = np.clip(4.5 - away_mm, 0, 1)
    cube = (-850 + 880 * part + rng.normal(0, 20, away_mm.shape)).astype(np.int16)
    model = models.load("phantom")

    (found,) = saliency(model, cube[None])

    raised = np.maximum(found, 0)
    assert found.sum() == pytest.approx(_above_lung(model, cube[None])[0], rel=0.05)
    assert found.sum() > 5
    assert raised[away_mm <= 7].sum() > 0.6 * raised.sum()
    assert raised[away_mm <= 7].mean() > 10 * raised[away_mm > 7].mean()


@pytest.mark.slow
@pytest.mark.real_data
def test_of_a_real_nodule_the_shipped_model_looks_at_the_nodule(real_data):
    """The nodule of 8.8 mm: more than half of what raises the logit lies within its radius and 3 mm."""
    folder = real_data / "lidc" / "subset9"
    (path,) = folder.glob("*.mhd")
    cubes = cut_cubes(read_volume(path), [[23.49083071, -47.63390567, -172.2791417]])

    (found,) = saliency(models.load("phantom"), cubes)

    z, y, x = np.ogrid[-15:16, -15:16, -15:16]
    raised = np.maximum(found, 0)
    assert raised[np.sqrt(z**2 + y**2 + x**2) <= 4.4 + 3].sum() > 0.5 * raised.sum()


@pytest.mark.usefixtures("float32_policy")
def test_what_cannot_be_explained_is_refused():
    """Cubes of another size, a model without the window, one that looks past it: one line each."""
    model = models.get("seed_cnn", **NETWORKS["seed_cnn"])
    bare = keras.Sequential([keras.Input((12, 12, 12, 1)), keras.layers.Flatten(), keras.layers.Dense(1)])

    with pytest.raises(InputError, match=r"cubes of \(12, 12, 12\) voxels\. Received: \(11, 11, 11\)"):
        saliency(model, _cubes(11))
    with pytest.raises(InputError, match="has no layer hu_window_clip"):
        saliency(bare, _cubes(12))
    hu = keras.Input((12, 12, 12, 1), dtype="int16")
    windowed = hu
    for layer in models.seed_cnn(12, filters=(1,)).layers[:2]:
        windowed = layer(windowed)
    both = keras.layers.Flatten()(keras.layers.Add(dtype="float32")([windowed, hu]))
    with pytest.raises(InputError, match="reads more than what its layer hu_window_clip gives"):
        saliency(keras.Model(hu, keras.layers.Dense(1)(both)), _cubes(12))


def test_a_map_is_read_back_where_its_cube_is(tmp_path):
    """A cube at (-40, 25.5, -120) mm LPS, 0.8 mm: its brightest voxel has the same place for every reader."""
    values = np.zeros((21, 21, 21), np.float32)
    values[4, 7, 18] = 2.5
    center_xyz_mm = np.array([-40.0, 25.5, -120.0])
    path = tmp_path / "saliency_1.nii.gz"

    write_saliency(path, values, center_xyz_mm, 0.8)

    expected_xyz_mm = center_xyz_mm + 0.8 * (np.array([18, 7, 4]) - 10)
    image = nibabel.load(path)
    assert image.get_data_dtype() == np.float32
    assert image.header.get_xyzt_units()[0] == "mm"
    place = np.unravel_index(image.get_fdata().argmax(), image.shape)
    for affine in (image.get_sform(), image.get_qform()):
        np.testing.assert_allclose((affine @ [*place, 1])[:3] * [-1, -1, 1], expected_xyz_mm, atol=1e-4)
    by_itk = sitk.ReadImage(str(path))
    assert by_itk[18, 7, 4] == 2.5
    np.testing.assert_allclose(by_itk.TransformIndexToPhysicalPoint((18, 7, 4)), expected_xyz_mm, atol=1e-4)
    own = read_volume(path)
    np.testing.assert_allclose(own.grid.to_world_xyz_mm([4, 7, 18]), expected_xyz_mm, atol=1e-4)


def test_a_map_lies_over_the_voxels_that_were_cut(tmp_path):
    """Of an oblique scan, too: the map's middle is at the finding, its axes are the world's."""
    tilted = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    grid = Grid((30, 40, 50), (0.7, 0.7, 1.5), (-20, 10, 5), tilted)
    volume = CTVolume("tilted", _ramp(grid), grid)
    center_xyz_mm = grid.to_world_xyz_mm([15.2, 20.4, 25.3])
    (cube,) = cut_cubes(volume, [center_xyz_mm], CubeSpec(9))

    write_saliency(tmp_path / "map.nii.gz", cube.astype(np.float32), center_xyz_mm, 1.0)

    image = sitk.ReadImage(str(tmp_path / "map.nii.gz"))
    point = image.TransformIndexToPhysicalPoint((1, 7, 3))
    z, y, x = grid.to_voxel_zyx(point)
    assert image[1, 7, 3] == pytest.approx(10 * z + 4 * y + 2 * x, abs=1)


def test_the_same_map_gives_the_same_bytes(tmp_path):
    """No time of day and no name of a file is in it."""
    values = np.random.default_rng(0).normal(size=(5, 5, 5)).astype(np.float32)
    for name in ("one.nii.gz", "two.nii.gz"):
        write_saliency(tmp_path / name, values, (1.0, 2.0, 3.0), 1.0)

    one, two = ((tmp_path / name).read_bytes() for name in ("one.nii.gz", "two.nii.gz"))
    assert one == two
    assert one[4:8] == bytes(4)
    assert len(gzip.decompress(one)) == 352 + 4 * 5**3


def _ramp(grid):
    z, y, x = np.indices(grid.shape_zyx)
    return (10 * z + 4 * y + 2 * x).astype(np.int16)
