"""Turns cubes into logits: one model or several, each as fast as it goes, calibrated and averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from luna_cls.cubes.augmentation import every_symmetry
from luna_cls.cubes.cutting import CubeSpec
from luna_cls.errors import InputError
from luna_cls.inference.bundle import Bundle
from luna_cls.inference.folding import fast
from luna_cls.inference.saliency import saliency

Cubes = NDArray[np.int16]


class Scorer:
    """The logit of a cube: the mean over models of what each, calibrated, says of it.

    Args:
        members: The models; all read the same cubes.
        symmetries: "none", or "in_plane" or "cube": a model's logit is then its mean over the 16 or 48 ways
            to mirror and turn a cube onto itself, before calibration.

    Raises:
        InputError: If a model cannot be opened, or they read different cubes.
    """

    def __init__(self, members: Sequence[Bundle], symmetries: str = "none") -> None:
        self.spec: CubeSpec = members[0].spec
        for member in members:
            if member.spec != self.spec:
                raise InputError(
                    f"The models read different cubes: {members[0].name} of {self.spec.size_vox} voxels and "
                    f"{self.spec.spacing_mm:g} mm, {member.name} of {member.spec.size_vox} and "
                    f"{member.spec.spacing_mm:g}. Predict with one kind at a time."
                )
        self._members = members
        self._models = [member.load() for member in members]
        self._networks = [fast(model) for model in self._models]
        self._symmetries = symmetries

    def __call__(self, cubes: Cubes) -> NDArray[np.float64]:
        """Logits `(n,)` of cubes `(n, z, y, x)`, HU.

        Raises:
            InputError: If one is not finite.
        """
        turned = list(every_symmetry(cubes, self._symmetries))
        mean = np.zeros(len(cubes))
        for member, network in zip(self._members, self._networks, strict=True):
            logits = np.mean([network(way[..., None]).astype(np.float64) for way in turned], axis=0)
            logits = member.calibration(logits) if member.calibration else logits
            if not np.isfinite(logits).all():
                raise InputError(f"{member.name} gives logits that are not finite. Train it again.")
            mean += logits
        return mean / len(self._members)

    def explain(self, cubes: Cubes) -> NDArray[np.float32]:
        """Maps `(n, z, y, x)` of what in cubes `(n, z, y, x)` raised their logits: the mean over models."""
        return np.mean([saliency(model, cubes) for model in self._models], axis=0)
