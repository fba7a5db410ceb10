"""The measures of a chest: those all people share, and those that differ.

Every length is for an adult of middle size, in mm, in the body frame (x to the left, y to the back,
z to the head; z = 0 near the right diaphragm's dome), and is multiplied by the person's size.
Lengths and places are read off axial CT of the chest in general and rounded; HU are textbook
values (fat -100, muscle 50, blood 40, liver 60 without contrast).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CAGE_HALF_XY_MM = (118.0, 82.0)  # inner half width and half depth of the rib cage at its widest
CAGE_WIDEST_Z_MM = 20.0
APEX_Z_MM = 205.0
SQUARENESS = 2.4  # chosen: 2 is an ellipse, a chest is a little squarer
SPINE_Y_MM = 60.0  # centre of the vertebral bodies
VERTEBRA_MM = 24.0  # height of a thoracic vertebra with its disc
RIB_PITCH_MM = 27.0  # from one rib to the next
RIB_SLANT = 0.5  # a rib falls half a millimetre for every one it runs forward
RIB_DEPTH_MM = 8.0  # from the pleura to a rib's middle
HILUM_XYZ_MM = (36.0, 6.0, 92.0)  # the left hilum; the right one is its mirror image
CARINA_XYZ_MM = (2.0, 18.0, 118.0)

AIR_HU, FAT_HU, MUSCLE_HU, CARTILAGE_HU, LIVER_HU = -1000.0, -103.0, 50.0, 110.0, 60.0


@dataclass(frozen=True)
class Build:
    """What differs from person to person.

    Args:
        size: Factor on every length.
        fat_mm: Fat under the skin.
        muscle_mm: Muscle on the rib cage.
        contrast_hu: What contrast medium adds to blood; 0 without.
        parenchyma_hu: Median of the lung's own tissue.
        rib_phase: Where ribs begin, in rib pitches.
        heart: Factor on the heart's size.
        bulge_mm: How far ribs push the pleura inwards, on average.
        spur_mm: Radius of the spurs on the vertebrae; not seen where it is small.
        emphysema: How much of the lung's tissue is lost, 0 in most.
        dependent_hu: What collapse adds where the lung lies lowest, 0 in half of all.
        calibre: Factor on the width of the lungs' vessels.
        arms_down: Whether the arms lie beside the chest.
    """

    size: float
    fat_mm: float
    muscle_mm: float
    contrast_hu: float
    parenchyma_hu: float
    rib_phase: float
    heart: float
    bulge_mm: float
    spur_mm: float
    emphysema: float
    dependent_hu: float
    calibre: float
    arms_down: bool

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Build:
        """A person at random. Ranges are chosen; half of LUNA16's scans have contrast."""
        return cls(
            size=rng.uniform(0.88, 1.06),
            fat_mm=rng.uniform(5, 28),
            muscle_mm=rng.uniform(13, 24),
            contrast_hu=float(rng.choice([0.0, rng.uniform(60, 300)])),
            parenchyma_hu=rng.uniform(-910, -820),
            rib_phase=rng.uniform(),
            heart=rng.uniform(0.9, 1.12),
            bulge_mm=rng.uniform(0.3, 3.2),
            spur_mm=rng.uniform(-2, 8),
            emphysema=float(rng.choice([0.0, 0.0, rng.uniform(0.3, 1)])),
            dependent_hu=float(rng.choice([0.0, rng.uniform(60, 300)])),
            calibre=rng.uniform(0.85, 1.25),
            arms_down=bool(rng.uniform() < 0.15),
        )

    @property
    def blood_hu(self) -> float:
        """HU of blood, with its contrast medium."""
        return 42.0 + self.contrast_hu
