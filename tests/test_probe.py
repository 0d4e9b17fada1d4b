"""The probe: a linear map finds what is there, nothing where nothing is, and never sees the clip that it is asked."""

import numpy as np
import pytest
import torch

from moalign import config
from moalign.stages import probe


@pytest.fixture
def grid():
    params = config.load("params.yaml", scale="smoke")
    return config.make_grid(params.backbones["cogvideox"], params.encoder)


def test_what_is_linear_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(32, 8)) for _ in range(30)]
    there = [one[:, :2] @ [[1.0, 2.0], [0.5, -1.0]] + 0.1 * rng.normal(size=(32, 2)) for one in tokens]
    nothing = [rng.normal(size=(32, 4)) for _ in tokens]
    r2, low, high = probe.readout(tokens, there)
    assert 0.95 < low < r2 < high < 1
    r2, low, high = probe.readout(tokens, nothing)
    assert r2 < 0.02 and low < 0.01


def test_a_clip_s_own_answer_is_not_learnt_by_heart():
    """Tokens that name their clip, answers that are the clip's: within clips perfect, over clips nothing."""
    rng = np.random.default_rng(1)
    tokens = [np.tile(np.eye(20)[n], (16, 1)) for n in range(20)]
    wanted = [np.full((16, 1), rng.normal()) for _ in range(20)]
    assert probe.readout(tokens, wanted)[0] < 0.05


def test_intervals_cover():
    """Slopes differ by clip; what 3000 clips give is the truth, and 60 clips' intervals hold it."""
    rng = np.random.default_rng(2)

    def draw(clips):
        tokens = [rng.normal(size=(16, 2)) for _ in range(clips)]
        return tokens, [one[:, :1] * rng.normal(1, 0.5) + rng.normal(size=(16, 1)) for one in tokens]

    truth = probe.readout(*draw(3000))[0]
    inside = [low <= truth <= high for _, low, high in (probe.readout(*draw(60)) for _ in range(60))]
    assert np.mean(inside) >= 0.85


def test_answers_are_of_a_token_s_own_pixels(grid):
    Fm, Hm, Wm = grid.motion
    x0 = torch.full((3, grid.frames, grid.height, grid.width), -1.0)
    side = grid.height // Hm
    x0[0, 3:5, 2 * side : 3 * side, side : 2 * side] = 1.0  # frames 3 and 4 are token time 1
    O = torch.zeros(Fm - 1, 2, 4 * Hm, 4 * Wm)
    O[2, 0, 4:8, :4] = 3.0
    found = probe.answers(x0, O, grid).reshape(Fm - 1, Hm, Wm, 6)
    red, u = found[..., 2], found[..., 0]
    assert red[1, 2, 1] == pytest.approx(1) and red.sum() == pytest.approx(1)
    assert u[2, 1, 0] == pytest.approx(3) and u.sum() == pytest.approx(3)
    assert np.abs(found[..., 5]).max() < 1e-3  # no contrast within an even patch


def test_student_tokens_come_to_the_grid_of_m(grid):
    Y = torch.arange(grid.tokens[0]).float()[:, None, None, None].expand(*grid.tokens, 5)
    found = probe.to_motion(Y, grid)
    assert found.shape == (*grid.motion, 5)
    assert found[:, 0, 0, 0].tolist() == [1 + t // grid.upsample for t in range(grid.motion[0])]
