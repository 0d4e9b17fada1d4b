"""Video files: look at, decode, pick, resize and crop frames, encode. Frames are uint8 [F, H, W, 3] RGB.

decord decodes, because it is the faster; PyAV stands behind the same interface as the reference (`reader="av"`). The
frame count of a header is never believed: containers promise frames that do not decode. A file that cannot be used
raises `BadVideo`, whose `reason` is one word or two that a stage can count.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import decord
import numpy as np

from moalign.errors import Problem
from moalign.manifest import disk, replacing

CRF = 12  # near lossless: on real footage 0.7 dB below what yuv420p alone loses
PRESET = "veryfast"  # a third of the time of `medium` for a tenth more bytes
FILTER = "cv2 INTER_AREA shrinking, INTER_CUBIC enlarging"  # what `scale` does, for a manifest's notes
BLOCK = 16  # frames decoded at a time
MACROBLOCK = 16  # pixels, H.264's
CONTAINERS = (b"ftyp", b"RIFF", b"\x1aE\xdf\xa3", b"moov", b"mdat", b"FLV", b"OggS")  # in the first 12 bytes

decord.logging.set_level(decord.logging.QUIET)
cv2.setNumThreads(1)  # the stages are parallel over shards


class BadVideo(Problem):
    """A video that cannot be used. reason: missing | unreadable | not a video | no frames | truncated | out of range"""

    def __init__(self, source: str | Path | bytes, reason: str, detail: str):
        self.reason = reason
        super().__init__(f"{name_of(source)}: {reason}: {detail}")


@dataclass(frozen=True, slots=True)
class Probe:
    """What a file holds, found without decoding it."""

    frames: int  # packets of the video stream; the last may still fail to decode
    fps: float
    height: int
    width: int


def name_of(source: str | Path | bytes) -> str:
    """How a message calls a video."""
    return f"video of {len(source)} bytes" if isinstance(source, bytes) else str(source)


def probe(source: str | Path | bytes) -> Probe:
    """Frames, rate and size of a video: its packets are counted, not decoded."""
    with _open(source) as container:
        stream = container.streams.video[0]
        rate = stream.average_rate or stream.guessed_rate
        try:
            frames = sum(1 for packet in container.demux(stream) if packet.size and not packet.is_discard)
        except av.FFmpegError as error:
            raise BadVideo(source, "truncated", f"{error.strerror}; fetch it again") from None
        if not frames or not stream.width:
            raise BadVideo(source, "no frames", "its video stream is empty; leave it out")
        if not rate:
            raise BadVideo(source, "unreadable", "no frame rate; re-encode it")
        return Probe(frames, float(rate), stream.height, stream.width)


def _open(source: str | Path | bytes) -> av.container.InputContainer:
    """The container of a video, known to have a video stream."""
    try:
        container = av.open(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except FileNotFoundError:
        raise BadVideo(source, "missing", "no such file; check the source's root and the annotation's path") from None
    except av.FFmpegError as error:
        if _looks_like_video(source):
            raise BadVideo(source, "unreadable", f"{error.strerror}; cut short or damaged, fetch it again") from None
        raise BadVideo(source, "not a video", f"{error.strerror}; leave it out") from None
    except OSError as error:
        raise BadVideo(source, "unreadable", f"{error.strerror}; check its permissions") from None
    if not container.streams.video:
        container.close()
        raise BadVideo(source, "not a video", "it has no video stream; leave it out")
    return container


def _looks_like_video(source: str | Path | bytes) -> bool:
    if isinstance(source, bytes):
        head = source[:12]
    elif Path(source).is_file():
        with open(source, "rb") as file:
            head = file.read(12)
    else:
        return False
    return any(mark in head for mark in CONTAINERS)


def read(
    source: str | Path | bytes,
    indices: list[int],
    reader: Literal["decord", "av"] = "decord",
    each: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """The frames at `indices`, in that order (repeats allowed): uint8 [F, H, W, 3] RGB.

    `each`, a resize say, is applied to a few frames at a time, so that a long clip of large frames needs little memory.
    """
    if not indices:
        raise ValueError("no frames asked for")
    if min(indices) < 0:
        raise BadVideo(source, "out of range", f"frame {min(indices)} was asked for; frames count from 0")
    return {"decord": _read_decord, "av": _read_av}[reader](source, indices, each or (lambda frames: frames))


def _read_decord(source: str | Path | bytes, indices: list[int], each: Callable) -> np.ndarray:
    try:
        reader = decord.VideoReader(io.BytesIO(source) if isinstance(source, bytes) else str(source), num_threads=1)
        if max(indices) >= len(reader):
            raise BadVideo(source, "out of range", f"frame {max(indices)} was asked for, {len(reader)} are there")
        blocks = [indices[first : first + BLOCK] for first in range(0, len(indices), BLOCK)]
        return np.concatenate([each(reader.get_batch(block).asnumpy()) for block in blocks])
    except (decord.DECORDError, RuntimeError):
        probe(source)  # says what is wrong where the file cannot even be opened
        raise BadVideo(source, "truncated", "some frames do not decode; fetch it again") from None


def _read_av(source: str | Path | bytes, indices: list[int], each: Callable) -> np.ndarray:
    wanted, found = set(indices), {}
    with _open(source) as container:
        try:
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    found[index] = each(frame.to_ndarray(format="rgb24")[None])
                if index >= max(indices):
                    break
        except av.FFmpegError as error:
            raise BadVideo(source, "truncated", f"{error.strerror}; fetch it again") from None
    if len(found) < len(wanted):
        raise BadVideo(source, "out of range", f"frame {max(indices)} was asked for; fewer are there")
    return np.concatenate([found[index] for index in indices])


def pick(frames: int, fps: float, wanted_frames: int, wanted_fps: float) -> list[int]:
    """Indices of `wanted_frames` frames at `wanted_fps`, from the first of a video of `frames` frames at `fps`.

    Frame i is the one nearest in time to i / wanted_fps; a slower video repeats frames. Problem where it is too short.
    """
    ratio = fps / wanted_fps
    indices = [int(i * ratio + 0.5 - 1e-6) for i in range(wanted_frames)]  # halves go down, whatever the rounding
    if indices[-1] >= frames:
        raise Problem(
            f"{frames} frames at {fps:g} fps do not hold {wanted_frames} at {wanted_fps:g} fps;"
            f" {indices[-1] + 1} are needed"
        )
    return indices


def scale(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames [F, H, W, 3] at height x width: area averages when shrinking (no aliasing), cubic when enlarging."""
    old_height, old_width = frames.shape[1:3]
    if (old_height, old_width) == (height, width):
        return frames
    method = cv2.INTER_AREA if height <= old_height and width <= old_width else cv2.INTER_CUBIC
    return np.stack([cv2.resize(frame, (width, height), interpolation=method) for frame in frames])


def resize(frames: np.ndarray, short_side: int) -> np.ndarray:
    """Frames [F, H, W, 3] with the shorter side at `short_side`, a multiple of 16, aspect kept.

    What the longer side has over a multiple of 16 is cut off, half at each end: x264 codes squares of that side, and
    what it makes of a part of one is not the same every time.
    """
    height, width = frames.shape[1:3]
    longer = round(max(height, width) * short_side / min(height, width))
    scaled = scale(frames, short_side, longer) if height <= width else scale(frames, longer, short_side)
    return crop(scaled, *(side - side % MACROBLOCK for side in scaled.shape[1:3]))


def crop(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """The centre height x width of frames [F, H, W, 3]."""
    top, left = (frames.shape[1] - height) // 2, (frames.shape[2] - width) // 2
    return frames[:, top : top + height, left : left + width]


def cover(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames [F, H, W, 3] resized, aspect kept, to just cover height x width, then cropped at the centre."""
    ratio = max(height / frames.shape[1], width / frames.shape[2])
    tall, wide = max(height, round(frames.shape[1] * ratio)), max(width, round(frames.shape[2] * ratio))
    return crop(scale(frames, tall, wide), height, width)


def encode(frames: np.ndarray, fps: float, crf: int = CRF) -> bytes:
    """H.264 mp4 (yuv420p) of frames [F, H, W, 3] with even sides; one thread, so equal frames give equal bytes."""
    _, height, width, _ = frames.shape
    if frames.dtype != np.uint8 or len(frames) == 0 or height % 2 or width % 2:
        raise ValueError(f"uint8 frames with even sides are needed, not {frames.dtype} {frames.shape}")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": PRESET, "bf": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in np.ascontiguousarray(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def write(path: str | Path, frames: np.ndarray, fps: float, crf: int = CRF) -> None:
    """`encode` into a file, by rename."""
    data = encode(frames, fps, crf)
    with disk(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data)
