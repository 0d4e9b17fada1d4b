"""P_zeta: the grids of both backbones, the layers of A.4 and Sec. 4.1, and what each output token may depend on."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import silu

from moalign import config
from moalign.align.losses import cosine, soft_trd, trd
from moalign.align.projector import Projector
from moalign.errors import Problem
from moalign.grid import Grid


def grid(frames=49, height=480, width=720, stride=(4, 8), teacher_height=160, teacher_patch=16):
    return Grid(frames, height, width, stride, 2, teacher_height, teacher_patch, 2)


MINIATURE = grid(17, 64, 64, stride=(4, 4), teacher_height=64, teacher_patch=8)
SMALL = grid(9, 96, 144, teacher_height=32)  # tokens 3 x 6 x 9 -> motion 4 x 2 x 3


@pytest.mark.parametrize(
    ("shape", "width", "tokens", "motion"),
    [
        (grid(), 1920, (13, 30, 45), (24, 10, 15)),  # CogVideoX
        (grid(width=832), 1536, (13, 30, 52), (24, 10, 17)),  # Wan, as trained here
        (grid(81, 480, 832), 1536, (21, 30, 52), (40, 10, 17)),  # Wan, all its frames
        (grid(), 1536, (13, 30, 45), (24, 10, 15)),  # Wan at CogVideoX's size
        (MINIATURE, 128, (5, 8, 8), (8, 8, 8)),
    ],
)
@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_the_grids_meet(shape, width, tokens, motion, kind):
    assert (shape.tokens, shape.motion) == (tokens, motion)
    with torch.device("meta"):
        projector = Projector(shape, width, 256, 64, kind)
        Z = projector(torch.empty(2, *tokens, width))
    assert Z.shape == (2, *motion, 64)


@pytest.mark.parametrize("loss", [lambda Z, M: soft_trd(Z, M, 10.0), trd, cosine], ids=["soft_trd", "trd", "cosine"])
@pytest.mark.parametrize(
    ("backbone", "Y", "Z"),
    [("cogvideox", (13, 30, 45, 1920), (24, 10, 15, 64)), ("wan", (13, 30, 52, 1536), (24, 10, 17, 64))],
)
def test_projector_and_loss_at_the_papers_sizes(backbone, Y, Z, loss):
    parameters = config.load(Path(__file__).parents[1] / "params.yaml", scale="paper")
    width = parameters.backbones[backbone].width
    with torch.device("meta"):
        projector = Projector(parameters.grid(backbone), width, parameters.align.hidden, Z[-1])
        block = torch.empty(1, *Y, requires_grad=True)
        student = projector(block)
        value = loss(student.flatten(2, 3), torch.empty(1, *Z).flatten(2, 3))
    value.backward()
    assert student.shape == (1, *Z)
    assert value.shape == ()
    assert block.grad.shape == block.shape
    assert all(p.grad.shape == p.shape for p in projector.parameters())


def test_layers_are_those_of_the_paper():
    shapes = {name: tuple(p.shape) for name, p in Projector(grid(), 1920, 256, 64).named_parameters()}
    assert shapes == {
        "channels.time.weight": (256, 1920, 3, 1, 1),
        "channels.time.bias": (256,),
        "channels.point.weight": (64, 256, 1, 1, 1),
        "channels.point.bias": (64,),
        "space.weight": (64, 64, 3, 3),
        "space.bias": (64,),
    }
    mlp = [p.shape for name, p in Projector(grid(), 1920, 256, 64, "mlp").named_parameters() if p.ndim == 2]
    assert mlp == [(256, 1920), (256, 256), (256, 256), (64, 256)]  # four layers


@pytest.mark.parametrize("shape", [SMALL, MINIATURE], ids=["3 to 1", "1 to 1"])
def test_conv_step_by_step(shape):
    """A.4 by hand: sums over taps, the interpolation's weights, patches."""
    torch.manual_seed(0)
    projector = Projector(shape, 5, 6, 4).double()
    Y = torch.randn(2, *shape.tokens, 5, dtype=torch.float64)
    p = dict(projector.named_parameters())
    X = Y[:, 1:]
    X = torch.cat([torch.zeros_like(X[:, :1]), X, torch.zeros_like(X[:, :1])], dim=1)
    taps = p["channels.time.weight"][..., 0, 0]  # [6, 5, 3]
    X = sum(X[:, k : k + Y.shape[1] - 1] @ taps[..., k].T for k in range(3)) + p["channels.time.bias"]
    X = silu(silu(X) @ p["channels.point.weight"][..., 0, 0, 0].T + p["channels.point.bias"])
    before, after = torch.cat([X[:, :1], X[:, :-1]], dim=1), torch.cat([X[:, 1:], X[:, -1:]], dim=1)
    X = torch.stack([0.75 * X + 0.25 * before, 0.75 * X + 0.25 * after], dim=2).flatten(1, 2)  # time x 2
    if shape.shrink == 1:
        X = torch.nn.functional.pad(X, (0, 0, 1, 1, 1, 1))
    _, Hm, Wm = shape.motion
    Z = torch.empty(2, *shape.motion, 4, dtype=torch.float64)
    for y in range(Hm):
        for x in range(Wm):
            top, left = y * shape.shrink, x * shape.shrink
            patch = X[:, :, top : top + 3, left : left + 3]  # [B, Fm, 3, 3, 4]
            Z[:, :, y, x] = torch.einsum("bfijc,ocij->bfo", patch, p["space.weight"]) + p["space.bias"]
    assert torch.allclose(projector(Y), Z, rtol=1e-12, atol=1e-12)


def test_mlp_works_token_by_token():
    torch.manual_seed(0)
    projector = Projector(SMALL, 5, 6, 4, "mlp").double()
    Y = torch.randn(1, *SMALL.tokens, 5, dtype=torch.float64)
    inner = projector.channels(Y[:, 1:].movedim(-1, 1)).movedim(1, -1)
    x = Y[0, 2, 3, 4]
    for i, linear in enumerate(m for m in projector.channels if isinstance(m, torch.nn.Linear)):
        x = linear(x) if i == 3 else silu(linear(x))
    assert torch.allclose(inner[0, 1, 3, 4], x, rtol=1e-12)


@pytest.mark.parametrize("kind", ["conv", "mlp"])
def test_latent_zero_reaches_nothing(kind):
    projector = Projector(SMALL, 5, 6, 4, kind)
    Y = torch.randn(1, *SMALL.tokens, 5, requires_grad=True)
    projector(Y).square().sum().backward()
    assert Y.grad[:, 0].eq(0).all()
    assert Y.grad[:, 1:].ne(0).any(-1).all()  # and every other token does: 3 x 3 of them per motion token


def test_the_loss_reaches_every_weight_and_the_block_output():
    torch.manual_seed(0)
    projector = Projector(SMALL, 5, 6, 4)
    Y = torch.randn(2, *SMALL.tokens, 5, requires_grad=True)
    soft_trd(projector(Y).flatten(2, 3), torch.randn(2, 4, 6, 4), 10.0).backward()
    assert all(p.grad.abs().sum() > 0 for p in projector.parameters())
    assert Y.grad[:, 1:].abs().sum() > 0


def test_bad_input_is_refused():
    with pytest.raises(Problem, match="does not fit the projector"):
        Projector(SMALL, 5, 6, 4)(torch.zeros(1, 3, 6, 8, 5))
    with pytest.raises(Problem, match="allowed: conv, mlp"):
        Projector(SMALL, 5, 6, 4, "linear")
