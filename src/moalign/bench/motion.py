"""Rater "motion": flicker, dynamic degree, mean motion, near-still clips, with no judge beyond the project's own flow.

The paper concedes that alignment lowers motion (dynamic degree 70.3 -> 42.2, Tab. A.1), and a still video breaks no law
of physics: so these numbers stand beside every physics score. Asked by `moalign bench`.
"""

from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from moalign.manifest import Sample, Score

FlowOn = Callable[[Tensor], Tensor]  # frames [N, 3, h, w] in [-1, 1] -> flow to the next one [N-1, 2, h, w], pixels

# VBench's dynamic degree, as its evaluator computes it.
RATE = 8  # frames per second that pairs are taken at, or the video's own rate where that is lower
FASTEST = 0.05  # share of a pair's pixels whose mean magnitude stands for the pair
MOVES = 6.0  # pixels on a frame whose shorter side has 256
OF_FRAMES = 4 / 16  # pairs that must move, as a share of the frames

STILL = 1.0  # pixels at 256: a clip none of whose pairs reaches a sixth of MOVES is near still

RULES = {
    "flicker": "VBench temporal flickering: (255 - mean |frame difference|) / 255, all frames; higher is steadier",
    "dynamic": "VBench dynamic degree's rule on this project's RAFT flow: 1 where it moves",
    "motion": "mean |flow|, pixels per 1/8 s on a frame whose shorter side has 256",
    "still": "1 where the fastest 5 % of pixels move less than 1 pixel (of 256) per 1/8 s in every pair",
}


def rate(sample: Sample, frames: np.ndarray, flow_on: FlowOn, size: tuple[int, int]) -> list[Score]:
    """Four scores of one video, uint8 frames [F, H, W, 3]; size: (h, w) that the flow network is used at.

    A video of one frame has no motion to measure and gets none.
    """
    values = {"flicker": flicker(frames), **movement(frames, sample.fps, flow_on, size)}
    return [
        Score(sample.prompt_id, sample.index, sample.seed, metric, value, rater="motion", rule=RULES[metric])
        for metric, value in values.items()
        if value is not None
    ]


def flicker(frames: np.ndarray) -> float | None:
    """VBench's temporal flickering of uint8 frames [F, H, W, 3], digit for digit; None for a single frame.

    Its evaluator takes each pair's mean in float32, over blue, green, red in memory: the order decides the last digits.
    """
    if len(frames) < 2:
        return None
    bgr = np.ascontiguousarray(frames[..., ::-1])
    pairs = [np.mean(cv2.absdiff(before, after).astype(np.float32)) for before, after in pairwise(bgr)]
    return (255.0 - np.mean(np.array(pairs)).item()) / 255.0


def movement(frames: np.ndarray, fps: float, flow_on: FlowOn, size: tuple[int, int]) -> dict[str, float | None]:
    """Dynamic degree, mean motion and stillness of uint8 frames [F, H, W, 3], from the flow between sampled frames."""
    sampled = frames[:: max(1, round(fps / RATE))]
    if len(sampled) < 2:
        return dict.fromkeys(("dynamic", "motion", "still"))
    speeds = magnitudes(sampled, flow_on, size)
    side = min(speeds.shape[1:])
    fastest = [mean_of_fastest(pair) for pair in speeds]
    return {
        "dynamic": float(is_dynamic(fastest, side, len(sampled))),
        "motion": float(speeds.mean(dtype=np.float64)) * 256 / side,
        "still": float(max(fastest) < STILL * side / 256),
    }


def magnitudes(frames: np.ndarray, flow_on: FlowOn, size: tuple[int, int]) -> np.ndarray:
    """|flow| [F-1, h, w] between consecutive uint8 frames, at the flow network's size with the video's own aspect."""
    x = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    x = interpolate(x, flow_size(x.shape[-2:], size), mode="bilinear", align_corners=False, antialias=True)
    u, v = flow_on(x).float().cpu().numpy().transpose(1, 0, 2, 3)
    return np.sqrt(np.square(u) + np.square(v))


def flow_size(frame: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) whose shorter side is that of `size`, with the frame's aspect, in multiples of 8, as RAFT needs."""
    scale = min(size) / min(frame)
    return round(frame[0] * scale / 8) * 8, round(frame[1] * scale / 8) * 8


def mean_of_fastest(speed: np.ndarray) -> float:
    """Mean of the largest 5 % of |flow| [h, w], float32."""
    fastest = -np.sort(-speed.ravel())[: int(speed.size * FASTEST)]
    return np.mean(fastest).item()


def is_dynamic(fastest: list[float], side: int, frames: int) -> bool:
    """VBench's decision, from the pairs' values, the frames' shorter side and their number.

    Strictly above the threshold; the count rounds half to even. Two frames ask for no moving pair: always dynamic.
    """
    moving = sum(value > MOVES * (side / 256.0) for value in fastest)
    return moving >= round(OF_FRAMES * frames)
