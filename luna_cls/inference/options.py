"""What predict does with logits, and what it writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luna_cls.errors import InputError
from luna_cls.inference import exports

SYMMETRIES = ("none", "in_plane", "cube")
PAGE = "html"  # the one format that is not written in this room: see `predictor.predict`


@dataclass(frozen=True)
class Options:
    """What is done with a model's logits, and what is written.

    Args:
        calibration: A `calibration.json`; None for each model's own, if it has one; "none" for none.
        ensemble: Further models, averaged with the first in logit space.
        symmetries: "none", "in_plane" or "cube": see `scoring.Scorer`.
        merge_mm: Findings nearer to each other than this become one; None to leave all.
        threshold: The probability from which findings are marked, for readers; None for the model's
            operating point, or else 1/2.
        most: At most so many are marked in a scan.
        diameters: Whether to estimate the diameter of what is marked.
        explain: For so many of the marked, from the first, a map of what raised their logit.
        formats: Beside `findings.csv`, names of `exports.WRITERS`, or "html".
    """

    calibration: str | Path | None = None
    ensemble: tuple[str | Path, ...] = ()
    symmetries: str = "none"
    merge_mm: float | None = None
    threshold: float | None = None
    most: int = 20
    diameters: bool = False
    explain: int = 0
    formats: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuses what makes no sense.

        Raises:
            InputError: If so.
        """
        exports.check([name for name in self.formats if name != PAGE])
        if self.symmetries not in SYMMETRIES:
            raise InputError(
                f"--symmetries is one of {', '.join(SYMMETRIES)}. Received: '{self.symmetries}'."
            )
        if self.merge_mm is not None and not 0 < self.merge_mm < np.inf:
            raise InputError(f"--merge is a distance in mm, more than 0. Received: {self.merge_mm:g}.")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold is a probability, from 0 to 1. Received: {self.threshold:g}.")
        for name, count, least in (("--most", self.most, 1), ("--explain", self.explain, 0)):
            if count < least:
                raise InputError(f"{name} is a number from {least} up. Received: {count}.")

    @property
    def written(self) -> list[str]:
        """Names of `exports.WRITERS`, each once, and the page, which is made of "json", at the end."""
        asked = dict.fromkeys(["json", *self.formats] if PAGE in self.formats else self.formats)
        return sorted(asked, key=[*exports.WRITERS, PAGE].index)

    @property
    def needs_volumes(self) -> bool:
        """Whether the voxels of a scan are needed when it has been scored."""
        return self.diameters or self.explain > 0 or PAGE in self.formats
