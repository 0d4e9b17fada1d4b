"""Frame and token arithmetic at the paper's sizes and at small ones."""

import pytest

from moalign.errors import Problem
from moalign.grid import Grid

PAPER = {"stride": (4, 8), "patch": 2, "teacher_height": 160, "teacher_patch": 16, "teacher_tubelet": 2}
SMALL = {"stride": (4, 4), "patch": 2, "teacher_height": 64, "teacher_patch": 8, "teacher_tubelet": 2}


@pytest.mark.parametrize(
    ("size", "latents", "tokens", "motion", "crop", "view"),
    [
        ((49, 480, 720), (13, 60, 90), (13, 30, 45), (24, 10, 15), (480, 720), (160, 240)),
        ((49, 480, 832), (13, 60, 104), (13, 30, 52), (24, 10, 17), (480, 816), (160, 272)),
        ((81, 480, 832), (21, 60, 104), (21, 30, 52), (40, 10, 17), (480, 816), (160, 272)),
    ],
)
def test_the_papers_sizes(size, latents, tokens, motion, crop, view):
    grid = Grid(*size, **PAPER)
    found = (grid.latents, grid.tokens, grid.motion, grid.crop, grid.view, grid.shrink, grid.upsample)
    assert found == (latents, tokens, motion, crop, view, 3, 2)
    assert grid.flows == motion[0] - 1
    grid.check("wan", "backbones.x")


def test_the_miniature_aligns_one_to_one():
    grid = Grid(17, 64, 64, **SMALL)
    assert (grid.tokens, grid.motion, grid.shrink, grid.view) == ((5, 8, 8), (8, 8, 8), 1, (64, 64))
    grid.check("cogvideox", "backbones.x")


@pytest.mark.parametrize(("rows", "fits"), [(1, True), (2, False), (3, True), (4, False)])
def test_a_student_grid_is_one_or_three_times_the_teachers(rows, fits):
    grid = Grid(17, 64 * rows, 64 * rows, **SMALL)
    if fits:
        grid.check("cogvideox", "b")
        assert grid.shrink == rows
    else:
        with pytest.raises(Problem, match="neither 1 x nor 3 x"):
            grid.check("cogvideox", "b")


def test_the_crop_maps_to_whole_motion_tokens():
    for width in range(720, 900, 16):
        grid = Grid(49, 480, width, **PAPER)
        height, across = grid.crop
        assert across <= width < across + 3 * grid.token_pixels
        assert across * grid.view[0] == height * grid.view[1]  # one scale both ways: no distortion
