"""Ribs, spine, breastbone, shoulder blades and collarbones, as distances."""

from __future__ import annotations

import numpy as np

from luna_cls.scans.phantom.build import RIB_DEPTH_MM, RIB_PITCH_MM, RIB_SLANT, SPINE_Y_MM, VERTEBRA_MM, Build
from luna_cls.scans.phantom.lattice import Field
from luna_cls.scans.phantom.shapes import Mesh, block, pipe

NO_BONE_MM = 50.0  # far from any bone
JOINT_Y_MM = -48.0  # where ribs end and cartilage begins


def along_ribs(mesh: Mesh, build: Build) -> Field:
    """Distance to the nearest rib's middle line, measured along the chest wall."""
    z, y, _ = mesh
    turns = (z - RIB_SLANT * y) / RIB_PITCH_MM + build.rib_phase
    return np.abs(turns - np.rint(turns)) * RIB_PITCH_MM * 0.9  # 0.9: cosine of the slant


def bones(mesh: Mesh, wall: Field, rib_mm: Field, build: Build) -> tuple[Field, Field]:
    """Distances to bone and to the cartilage that joins ribs and breastbone."""
    z, y, x = mesh
    ribs = (np.hypot((wall - RIB_DEPTH_MM) / 4.4, rib_mm / 6.8) - 1) * 4.4
    # Where bone meets cartilage a rib is thick, and more so with age.
    ribs = ribs - 0.9 * build.bulge_mm * np.exp(-(((y - JOINT_Y_MM) / 7) ** 2))
    in_front = (y < JOINT_Y_MM) & (np.abs(x) < 78)
    cartilage = np.where(in_front, ribs, NO_BONE_MM)
    bone = np.where(in_front, NO_BONE_MM, ribs)
    bone = np.minimum(bone, _vertebrae(mesh, build))
    sternum = np.maximum(np.abs(wall - 10) - 5, np.maximum(np.abs(x) - 17, np.abs(z - 95) - 75))
    bone = np.minimum(bone, np.where(y < 0, sternum, NO_BONE_MM))
    blade = block(mesh, (0, 58, 135), (135, 46, 62))
    scapula = np.maximum(np.maximum(np.abs(wall - 27) - 3.2, blade), 62 - np.abs(x))
    bone = np.minimum(bone, scapula)
    clavicles = pipe((z, y, np.abs(x)), [(16, -62, 176), (70, -52, 200), (150, -15, 215)], 6.5)
    return np.minimum(bone, clavicles).astype(np.float32), cartilage.astype(np.float32)


def _vertebrae(mesh: Mesh, build: Build) -> Field:
    z, y, x = mesh
    turns = z / VERTEBRA_MM + build.rib_phase
    from_disc_mm = np.abs(turns - np.rint(turns)) * VERTEBRA_MM
    body = (np.hypot(x / 18, (y - SPINE_Y_MM) / 14) - 1) * 16 + 2 * np.cos(from_disc_mm / 4)
    body = np.maximum(body, 2.5 - from_disc_mm)
    arch = np.maximum(np.abs(np.hypot(x, y - 83) - 12) - 3, 4 - from_disc_mm)
    spinous = np.maximum(block((z, y, x), (0, 106, 0), (3.2, 13, 1e3)), 3 - from_disc_mm)
    transverse = np.maximum(block((z, y, x), (0, 84, 0), (32, 4.5, 1e3)), 7 - from_disc_mm)
    return np.minimum(np.minimum(body, arch), np.minimum(spinous, transverse))
