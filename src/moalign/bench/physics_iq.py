"""Physics-IQ (arXiv 2501.09038) and Physics-IQ Verified (arXiv 2606.18943): names, preflight, metrics and scores.

A model is given the switch frame of a real experiment, filmed twice from three sides, and goes on for 5 s. Where, when
and how much something moves is compared with the first real take; how far the two takes agree is what can be reached.

All facts are from github.com/google-deepmind/physics-IQ-benchmark, folder physiq/: names and numbers from dataset.py
(commit 14b157b) and descriptions/data.yaml (edb3052), masks from binary_mask_generator.py and the scores from
calculate_iq_score.py and calculate_iq_score_stable.py (b5faeb1), metrics from calculate_and_write_metrics_to_csv.py
(9c64abc), the checks from run_physics_iq.py (09aa9cc). Under the folder's former name, code/ (186fefc), the Verified
score took the geometric mean of the four metrics; under physiq/ it takes the arithmetic one, as here. Both benchmarks
have one code and one set of names; they differ in footage, prompts and score. `moalign physics-iq` asks this.

Not the same here: files are never renamed, a wrong name is a fault; and real footage must have the videos' frame rate
(the benchmark ships 30, 24, 16 and 8), where that code would make it by blending frames.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from moalign import video
from moalign.bench.preflight import Fault
from moalign.errors import Problem
from moalign.progress import track
from moalign.video import BadVideo

SECONDS = 5
SIDES = ("left", "center", "right")
SCENES = (  # in the order of their numbers
    *("ball-and-block-fall", "ball-behind-rotating-paper", "ball-hits-duck", "ball-hits-nothing", "ball-in-basket"),
    *("ball-in-sand", "ball-ramp", "ball-rolls-off", "ball-rolls-on-glass", "ball-train", "balls-collide"),
    *("block-domino", "blow-balloon", "cut-orange", "cut-paper", "domino-in-juice", "dominos-with-space"),
    *("double-cradle", "duck-and-dominos", "duck-falls-in-box", "duck-static", "fill-glass-red-drink"),
    *("glass-stays-same", "juice-in-water", "light-on-block", "light-on-mug", "light-on-mug-block", "light-on-statue"),
    *("liquid-on-duck", "liquid-overfill", "lit-candle", "magnet-domino", "magnet-transparent-peakaboo"),
    *("magnet-wrench", "marble-run-x", "marble-run-y", "match", "match-blows-balloon", "mirror-ball-fall"),
    *("mirror-ball-rotate", "mirror-teapot-rotate", "mug-breaks", "napkin-soak", "paint-on-glass", "paper-fall-water"),
    *("paper-in-water", "paper-smoke", "potato-in-water", "roll-behind-box", "roll-front-box", "roll-in-box"),
    *("rolling-reflection", "silk-cover", "single-cradle", "siphon", "smiley-ball-rotates", "solid-ball-peakaboo"),
    *("stable-blocks", "teapot-rotates", "two-balls-pass", "unstable-block-stack", "water-in-juice"),
    *("weight-on-ceramic", "weight-on-paper", "weight-on-pillow", "weight-protects-duck"),
)
IOUS = ("spatial", "spatiotemporal", "weighted_spatial")
METRICS = (*IOUS, "mse")

SHRINK = 4  # frames and masks are compared at a quarter of the real footage's sides
KERNEL = (5, 5)  # px, of the blur and of the opening and closing
MEMORY = 0.3  # weight of a new frame in the running background
DIFFERS = 10  # grey levels from the background above which a pixel moves
WHITE = 127  # a resized mask counts above it
FRAME_DIGITS = 4  # that a value per frame keeps on its way through the benchmark's csv
VARIANCE_DIGITS = {"spatial": 5, "spatiotemporal": 4, "weighted_spatial": 4, "mse": 4}  # of the original score
EPSILON = 1e-8  # of the Verified score's ratios


# --- names and preflight ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shot:
    """One scene from one side: the files that its metrics need."""

    scene: str
    side: str
    generated: Path
    takes: tuple[Path, Path]
    masks: tuple[Path, Path] | None  # of the takes, where the benchmark's own are used

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return self.generated, *self.takes, *(self.masks or ())

    def whole(self, faults: Sequence[Fault]) -> bool:
        """All files are there, and none has a fault."""
        bad = {fault.path for fault in faults}
        return all(path.is_file() and str(path) not in bad for path in self.files)


def shots(videos: str | Path, real: str | Path, masks: str | Path | None, fps: int) -> list[Shot]:
    """All shots, in the order of their numbers."""
    found = []
    for number, (scene, side) in enumerate(product(SCENES, SIDES), 1):
        generated = Path(videos) / f"{number:04}_perspective-{side}_trimmed-{scene}.mp4"
        takes = both_takes(real, "testing-videos", fps, number, side, scene)
        own = both_takes(masks, "video-masks", fps, number, side, scene) if masks else None
        found.append(Shot(scene, side, generated, takes, own))
    return found


def both_takes(folder: str | Path, kind: str, fps: int, number: int, side: str, scene: str) -> tuple[Path, Path]:
    """Files of the two takes of a shot; second takes are numbered after all first ones."""
    ends = [f"{kind}_{fps}FPS_perspective-{side}_take-{take}_trimmed-{scene}.mp4" for take in (1, 2)]
    return Path(folder) / f"{number:04}_{ends[0]}", Path(folder) / f"{number + len(SCENES) * len(SIDES):04}_{ends[1]}"


def real_fps(real: str | Path) -> int:
    """Frames per second by the names of the real footage, `NNNN_testing-videos_30FPS_...`; Problem without any."""
    labels = Counter(
        parts[2].removesuffix("FPS")
        for parts in (file.name.split("_") for file in listed(real))
        if len(parts) == 6 and parts[1] == "testing-videos" and parts[2].removesuffix("FPS").isdecimal()
    )
    if not labels:
        raise Problem(
            f"{real}: no file NNNN_testing-videos_30FPS_perspective-left_take-1_trimmed-SCENE.mp4; give the folder of"
            " one frame rate, split-videos/testing/30FPS of the benchmark's data"
        )
    return int(max(labels, key=labels.get))


def listed(folder: str | Path) -> list[Path]:
    """Files of a folder, sorted; Problem where there is none."""
    if not Path(folder).is_dir():
        raise Problem(f"{folder}: no such folder; correct the path")
    return sorted(file for file in Path(folder).iterdir() if file.is_file() or file.is_symlink())


def preflight(wanted: Sequence[Shot], fps: int) -> list[Fault]:
    """What differs from what is wanted: names, readability, rate, length; nothing is decoded."""
    generated = {shot.generated for shot in wanted}
    by_folder = defaultdict(set)
    for shot in wanted:
        for path in shot.files:
            by_folder[path.parent].add(path)
    faults, there = [], []
    for folder, here in by_folder.items():
        found = listed(folder)
        faults += names(here, found)
        there += here & set(found)
    for path in track(sorted(there), "look at videos"):
        if fault := look(path, fps, exact=path in generated):
            faults.append(fault)
    return sorted(faults, key=lambda fault: fault.path)


def names(wanted: set[Path], found: list[Path]) -> list[Fault]:
    """Missing, misnamed and extra files of a folder; by its number a file is known for what it was meant to be."""
    meant = {path.name[:4]: path for path in wanted}
    faults, renamed = [], set()
    for path in found:
        if path in wanted:
            continue
        other = meant.get(path.name[:4])
        if other is None or path.suffix != ".mp4":
            faults.append(Fault("extra", str(path), "not of this benchmark, or of another rate; move it away"))
        elif other in found or other in renamed:
            faults.append(Fault("doubled", str(path), f"its number is that of {other.name}; keep one"))
        else:
            renamed.add(other)
            faults.append(Fault("misnamed", str(path), f"rename it to {other.name}"))
    return faults + [Fault("missing", str(path), "no such file") for path in wanted - set(found) - renamed]


def look(path: Path, fps: int, exact: bool) -> Fault | None:
    """What is wrong with one file. exact: it must have 5 s of frames, no more; the first 5 s of others are used."""
    try:
        probe = video.probe(path)
    except BadVideo as error:
        return Fault("unreadable", str(path), error.reason)
    frames = SECONDS * fps
    if round(probe.fps, 2) != fps:
        return Fault("rate", str(path), f"{probe.fps:g} frames per second, {fps} are wanted as in the real footage")
    if probe.frames < frames or (exact and probe.frames > frames):
        cure = "cut it" if probe.frames > frames else "make it again"
        return Fault("length", str(path), f"{probe.frames} frames, {frames} are wanted ({SECONDS} s); {cure}")
    return None


# --- metrics ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footage:
    """A video as it is compared."""

    pictures: np.ndarray  # uint8 [F, h, w, 3]
    masks: np.ndarray  # bool [F, h, w, 3], what moves, by channel of the file that masks are read from


def measure(shot: Shot, fps: int) -> dict[str, dict[str, float]]:
    """Agreement of the video with the first take, and of the two takes with each other ("variance")."""
    frames = SECONDS * fps
    first, second = shot.takes
    take = read(first, frames, None, shot.masks and shot.masks[0])
    size = take.masks.shape[1:3]
    return {
        "video": agreement(read(shot.generated, frames, size), take),
        "variance": agreement(read(second, frames, size, shot.masks and shot.masks[1]), take),
    }


def read(path: Path, frames: int, size: tuple[int, int] | None, masks: Path | None = None) -> Footage:
    """The first frames of a video at size (h, w), by default a quarter of its own; BadVideo where some do not decode.

    Masks are computed at the video's own size and made smaller, or read from a file of white on black.
    """
    with TemporaryDirectory() as folder:
        if masks is None:
            masks = Path(folder) / "masks.mp4"
            store(moving(decode(path, frames)), masks, frames / SECONDS)
        pictures, white = [], []
        for picture, mask in zip(decode(path, frames), decode(masks, frames), strict=True):
            height, width = size = size or (picture.shape[0] // SHRINK, picture.shape[1] // SHRINK)
            pictures.append(cv2.resize(picture, (width, height)))
            white.append(cv2.resize(mask, (width, height)) > WHITE)
    return Footage(np.stack(pictures), np.stack(white))


def store(masks: Iterable[np.ndarray], path: Path, fps: float) -> None:
    """Write masks, uint8 [H, W], as the benchmark's code does: MPEG-4, whose loss moves a score by some hundredths."""
    writer = None
    for mask in masks:
        height, width = (side - side % 2 for side in mask.shape)
        writer = writer or cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, (width, height), False)
        writer.write(mask[:height, :width])
    writer.release()


def decode(path: Path, frames: int) -> Iterator[np.ndarray]:
    """The first frames of a video, uint8 [H, W, 3] BGR, by OpenCV as in the benchmark's own code."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    for number in range(frames):
        there, frame = capture.read()
        if not there:
            raise BadVideo(path, "truncated", f"frame {number} of {frames} does not decode; fetch or make it again")
        yield frame
    capture.release()


def moving(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """What moves in each frame: uint8 [H, W] of 0 and 255, where a frame differs from a running mean of those so far.

    The mean takes in a frame before that is compared with it. The first frame has no motion.
    """
    background = None
    for picture in pictures:
        grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), KERNEL, 0)
        if background is None:
            background = grey.astype(np.float64)
            yield np.zeros_like(grey)
            continue
        cv2.accumulateWeighted(grey, background, MEMORY)
        differs = cv2.absdiff(grey, cv2.convertScaleAbs(background))
        _, mask = cv2.threshold(differs, DIFFERS, 255, cv2.THRESH_BINARY)
        for clean in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
            mask = cv2.morphologyEx(mask, clean, np.ones(KERNEL, np.uint8))
        yield mask


def agreement(a: Footage, b: Footage) -> dict[str, float]:
    """The four metrics of two videos of equal shape.

    spatial: IoU of where anything ever moves. spatiotemporal: mean over frames of the IoU of what moves then.
    weighted_spatial: IoU of how often each pixel moves, sum of minima over sum of maxima. mse: mean over frames of the
    mean square difference of pictures in [0, 1]. Two empty masks agree, 1.
    """
    frames = list(zip(a.masks, b.masks, strict=True))
    often_a, often_b = a.masks.mean(axis=0), b.masks.mean(axis=0)
    return {
        "spatial": iou(a.masks.any(axis=0), b.masks.any(axis=0)),
        "spatiotemporal": float(np.mean([round(iou(*pair), FRAME_DIGITS) for pair in frames])),
        "weighted_spatial": overlap(np.minimum(often_a, often_b).sum(), np.maximum(often_a, often_b).sum()),
        "mse": float(np.mean([round(mse(*pair), FRAME_DIGITS) for pair in zip(a.pictures, b.pictures, strict=True)])),
    }


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of masks, any shape."""
    return overlap((a & b).sum(), (a | b).sum())


def overlap(shared: float, union: float) -> float:
    """Their ratio; 1 of nothing."""
    return float(shared / union) if union else 1.0


def mse(a: np.ndarray, b: np.ndarray) -> float:
    """Mean square difference of uint8 pictures, scaled to [0, 1], in float32."""
    a, b = ((picture / 255.0).astype(np.float32) for picture in (a, b))
    return float(np.mean((a - b) ** 2))


# --- scores -----------------------------------------------------------------------------------------------------------


def totals(measured: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, float | dict[str, float]]:
    """Scores 0-100 from what `measure` found of every shot, and the means over shots behind them.

    verified (the leaderboard's `final_score_view`): mean over shots and metrics of agreement over variance, of the mse
    variance over mse, each clipped to [0, 1]. original (`final_score_origround`): means over all shots first; mean of
    the three ratios of IoUs minus (mse - its variance), clipped; rounded where the benchmark's code rounds. 100 is what
    a video gets that agrees with the first take as well as the second take does.
    """
    means = {
        part: {name: float(np.mean([shot[part][name] for shot in measured])) for name in METRICS}
        for part in ("video", "variance")
    }
    variance = {name: round(means["variance"][name], VARIANCE_DIGITS[name]) for name in METRICS}
    if not all(variance[name] for name in IOUS):
        raise Problem("physics-iq: the two real takes never move at the same place; is --real the right folder?")
    ratio = sum(means["video"][name] / variance[name] for name in IOUS) / len(IOUS)
    original = 100 * (ratio - (means["video"]["mse"] - variance["mse"]))
    by_metric = {name: 100 * math.fsum(reached(shot, name) for shot in measured) / len(measured) for name in METRICS}
    return {
        "verified": math.fsum(by_metric.values()) / len(METRICS),
        "original": round(max(min(original, 100.0), 0.0), 2),
        "verified_by_metric": by_metric,
        "mean_of_videos": means["video"],
        "mean_of_variance": means["variance"],
    }


def reached(shot: Mapping[str, Mapping[str, float]], name: str) -> float:
    """How much of what can be reached a shot has of one metric, 0 to 1."""
    value, variance = shot["video"][name], shot["variance"][name] + EPSILON
    if name == "mse":
        return min(variance / value, 1.0) if value else 1.0
    return min(value / variance, 1.0)
