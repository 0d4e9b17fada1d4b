"""Pairs of frames whose flow is known without any model: one picture, seen twice through a moving window."""

import math

import torch
from torch import Generator, Tensor
from torch.nn.functional import grid_sample

SHIFT = 9.0  # px, largest shift along an axis; most are far smaller
TURN = math.radians(5)
ZOOM = 0.06


def moved(picture: Tensor, size: tuple[int, int], rng: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From picture [3, H, W]: frames a, b [3, h, w], flow a -> b [2, h, w] in pixels, and where b shows it too [h, w].

    The window's place and size are random; between a and b it shifts, turns and zooms, mostly a little.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=rng).item()

    side = min(picture.shape[1] / size[0], picture.shape[2] / size[1])
    zoom = side * uniform(0.7, 1.0)
    centre = torch.tensor(
        [
            (length - 1) / 2 + uniform(-0.5, 0.5) * (length - zoom * n)
            for length, n in zip(picture.shape[1:], size, strict=True)
        ]
    ).flip(0)  # x, y of the window's centre in the picture
    shift = torch.tensor([uniform(-1, 1) ** 3 * SHIFT for _ in range(2)])
    turn, grow = uniform(-1, 1) ** 3 * TURN, 1 + uniform(-1, 1) ** 3 * ZOOM
    motion = grow * torch.tensor([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    h, w = size
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    points = torch.stack([x, y], -1)  # [h, w, 2] from the window's centre
    goal = points @ motion.T + shift
    back = (points - shift) @ torch.linalg.inv(motion).T
    a, b = (look(picture, zoom * at + centre) for at in (points, back))
    half = torch.tensor([(w - 1) / 2, (h - 1) / 2])
    return a, b, (goal - points).permute(2, 0, 1), (goal.abs() <= half).all(-1).float()


def look(picture: Tensor, at: Tensor) -> Tensor:
    """The picture [3, H, W] at pixel places [h, w, 2] (x, y), mirrored beyond its edges -> [3, h, w]."""
    scale = torch.tensor([picture.shape[2] - 1, picture.shape[1] - 1])
    grid = 2 * at / scale - 1
    return grid_sample(picture[None], grid[None], mode="bilinear", padding_mode="reflection", align_corners=True)[0]
