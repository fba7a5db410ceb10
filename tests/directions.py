"""Ways a scan may lie in the world."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

IDENTITY = np.eye(3)
FLIPPED_XY = np.diag([-1.0, -1.0, 1.0])
PERMUTED = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])  # x runs along world y, y z, z x
TILTED = Rotation.from_euler("xyz", [20, -10, 5], degrees=True).as_matrix()

each_direction = pytest.mark.parametrize(
    "direction", [IDENTITY, FLIPPED_XY, PERMUTED, TILTED], ids=["aligned", "flipped", "permuted", "tilted"]
)
