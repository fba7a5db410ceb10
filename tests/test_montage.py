import numpy as np
import pytest

from luna_cls.cubes.montage import LEFT_PX, TILE_PX, TOP_PX, draw_planes


@pytest.mark.parametrize("size", [30, 31])
def test_front_head_and_right_are_up_and_left(size):
    """A bright octant at the patient's right, front and head is the upper left of all three planes."""
    cube = np.full((size, size, size), -1000, np.int16)
    cube[size // 2 :, : size // 2 + 1, : size // 2 + 1] = 400

    picture = draw_planes(cube[None], ["p = 0.5"], "One", "of one", columns=2)

    for row in range(3):
        top = TOP_PX + row * (TILE_PX + 4)
        tile = picture[top : top + TILE_PX, LEFT_PX : LEFT_PX + TILE_PX]
        quarters = [tile[y : y + 50, x : x + 50].mean() for y in (5, 70) for x in (5, 70)]
        assert quarters == [255, 0, 0, 0]


def test_the_window_is_what_a_model_sees():
    """-1000 HU and below is black, 400 and above white, -300 in the middle."""
    cubes = np.stack([np.full((31, 31, 31), hu, np.int16) for hu in (-3000, -1000, -300, 400, 3000)])

    picture = draw_planes(cubes, [""] * 5, "", "", columns=5)

    seen = [picture[TOP_PX + 60, LEFT_PX + 60 + column * (TILE_PX + 4), 0] for column in range(5)]
    assert seen == pytest.approx([0, 0, 128, 255, 255], abs=1)


def test_room_and_size_do_not_depend_on_how_many_there_are():
    """None or two of eight cubes: as wide; every caption line makes it higher."""
    cubes = np.zeros((2, 31, 31, 31), np.int16)

    none = draw_planes(cubes[:0], [], "", "", columns=8)
    two = draw_planes(cubes, ["a\nb\nc"] * 2, "", "", columns=8)

    assert none.shape[1] == two.shape[1] == 1090
    assert two.shape[0] - none.shape[0] == 3 * 16
