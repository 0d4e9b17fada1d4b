"""Rater "codec": motion as a video encoder sees it. A diagnostic, not a score of any benchmark; it needs no weights.

How far things move, how much of the frame moves and how unsteadily, from the motion vectors of H.264. The frames are
encoded once more, all with one fixed setting, so that the settings of whoever wrote the files do not matter. A vector
says where the encoder found a block's likeness, which need not be where the thing was: on flat ground it may point
anywhere. Asked by `moalign bench`; `compare` puts a set of samples beside real clips.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
from scipy.stats import wasserstein_distance

from moalign.errors import Problem
from moalign.manifest import Sample, Score

# One thread, one group of pictures (I P P P ...), each frame predicted from the one before alone, one quantiser.
ENCODER = {"preset": "medium", "x264-params": "qp=20:bframes=0:keyint=infinite:scenecut=0:ref=1:weightp=0:no-psy=1"}
RATE = 25  # frames per second that the encoder is told; with a fixed quantiser it changes nothing
CELL = 8  # px, the smallest block that a vector is exported for
MOVES = 0.5  # px per frame from which on a block moves; below, noise is followed too
SHORTEST = 4  # frames: three vectors have a second difference
DRAWS = 1000
LEVEL = 0.95

RULES = {
    "codec_motion": "diagnostic: mean length of H.264 motion vectors over all pixels and frames, px per frame",
    "codec_moving": f"diagnostic: share of pixels whose block moves at least {MOVES:g} px per frame",
    "codec_jerk": "diagnostic: mean length of the second difference in time of the frame's mean vector, px per frame^3",
}


def rate(sample: Sample, frames: np.ndarray) -> list[Score]:
    """Three scores of one video, uint8 frames [F, H, W, 3]; none of fewer than SHORTEST frames."""
    return [
        Score(sample.prompt_id, sample.index, sample.seed, metric, value, rater="codec", rule=RULES[metric])
        for metric, value in measure(frames).items()
    ]


def measure(frames: np.ndarray) -> dict[str, float]:
    """Metrics of uint8 frames [F, H, W, 3] by name, in pixels of these frames; none of too few."""
    if len(frames) < SHORTEST:
        return {}
    field = vectors(frames)
    length = np.linalg.norm(field, axis=-1)
    jerks = np.diff(field.mean(axis=(1, 2)), n=2, axis=0)
    return {
        "codec_motion": float(length.mean()),
        "codec_moving": float((length >= MOVES).mean()),
        "codec_jerk": float(np.linalg.norm(jerks, axis=-1).mean()),
    }


def vectors(frames: np.ndarray) -> np.ndarray:
    """Motion into each frame but the first, of uint8 frames [F, H, W, 3]: float64 [F-1, H, W, 2], dx and dy in pixels.

    0 where the encoder found no likeness and coded the block anew, and where a block is the same as before, bit for
    bit: a still video has no motion, whatever the encoder says. An odd row or column at the edge is left out: the field
    is then one shorter or narrower.
    """
    height, width = (side - side % 2 for side in frames.shape[1:3])
    frames = frames[:, :height, :width]
    decoder = av.CodecContext.create("h264", "r")
    decoder.options = {"flags2": "+export_mvs"}
    decoder.thread_count = 1
    fields = []
    for packet in [*encode(frames), None]:
        for frame in decoder.decode(packet):
            found = frame.side_data.get("MOTION_VECTORS")
            fields.append(spread([] if found is None else found.to_ndarray(), height, width))
    return np.stack([field * changed(*pair) for field, pair in zip(fields[1:], pairwise(frames), strict=True)])


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Whether a pixel's cell of two uint8 frames [H, W, 3] differs: [H, W, 1] of 0 and 1."""
    height, width = before.shape[:2]
    differs = (before != after).any(axis=-1)
    cells = np.pad(differs, ((0, -height % CELL), (0, -width % CELL)))
    cells = cells.reshape(len(cells) // CELL, CELL, -1, CELL).any(axis=(1, 3))
    return cells.repeat(CELL, axis=0).repeat(CELL, axis=1)[:height, :width, None]


def encode(frames: np.ndarray) -> list[av.Packet]:
    """H.264 of uint8 frames [F, H, W, 3] with even sides, by the one setting."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = frames.shape[1:3]
    encoder.pix_fmt = "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(RATE), Fraction(1, RATE)
    encoder.thread_count = 1
    encoder.options = ENCODER
    packets = []
    for number, pixels in enumerate(np.ascontiguousarray(frames)):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts = number
        packets += encoder.encode(frame)
    return packets + encoder.encode()


def spread(blocks: Sequence | np.ndarray, height: int, width: int) -> np.ndarray:
    """Vectors of one frame's blocks, as FFmpeg exports them, over their pixels: [height, width, 2]."""
    field = np.zeros((-(-height // CELL), -(-width // CELL), 2))
    for _, w, h, _, _, x, y, _, dx, dy, scale in blocks:
        top, left = (y - h // 2) // CELL, (x - w // 2) // CELL
        field[top : top + h // CELL, left : left + w // CELL] = -dx / scale, -dy / scale  # it points to the source
    return field.repeat(CELL, axis=0).repeat(CELL, axis=1)[:height, :width]


# --- a set of samples beside real clips -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Distance:
    """Between the values of one metric over samples and over real clips, in the metric's own unit."""

    value: float  # 1-D Wasserstein: how far a value must be moved, on average, to make one set the other
    low: float  # 95 % percentile interval, both sets resampled; it lies high, as resampling adds a distance of its own
    high: float
    chance: float  # 95th percentile between two sets of these sizes drawn from both put together


def compare(samples: Mapping[str, Sequence[float]], real: Mapping[str, Sequence[float]]) -> dict[str, Distance]:
    """Distance for each metric, from values per video ([N] samples, [K] real), as `measure` names them.

    A distance not above `chance` is one that two halves of one set could show. Both sets must be measured at one size
    and frame rate. Problem where a metric is in one set alone, has no value, or one that is no number.
    """
    if samples.keys() != real.keys():
        raise Problem(f"codec: {', '.join(sorted(samples.keys() ^ real.keys()))} in one of the two sets alone")
    return {metric: distance(metric, samples[metric], real[metric]) for metric in samples}


def distance(metric: str, samples: Sequence[float], real: Sequence[float]) -> Distance:
    """`compare` of one metric; a function of the values alone, not of their order."""
    a, b = (np.sort(np.asarray(values, dtype=np.float64)) for values in (samples, real))
    if not (len(a) and len(b)) or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise Problem(f"codec: {metric}: values are missing; {len(a)} of samples, {len(b)} of real clips, all finite?")
    rng = np.random.default_rng(0)
    both = np.concatenate([a, b])
    apart = [wasserstein_distance(rng.choice(a, len(a)), rng.choice(b, len(b))) for _ in range(DRAWS)]
    mixed = [wasserstein_distance(order[: len(a)], order[len(a) :]) for order in map(rng.permutation, [both] * DRAWS)]
    low, high = np.quantile(apart, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Distance(float(wasserstein_distance(a, b)), float(low), float(high), float(np.quantile(mixed, LEVEL)))
