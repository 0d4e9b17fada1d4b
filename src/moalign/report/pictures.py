"""Videos, frames and flow as data that the page carries inside itself."""

import base64
from functools import cache
from pathlib import Path

import cv2
import flow_vis
import numpy as np

from moalign import video

LARGEST = 240  # pixels of a video's shorter side on the page; a larger one is made small
CRF = 26  # of those
GAP = 6  # pixels between the pictures of a strip


def embedded_video(path: Path) -> str:
    """A video as a data address: its own bytes, or a small copy of a large one."""
    look = video.probe(path)
    if min(look.height, look.width) <= LARGEST:
        return address("video/mp4", path.read_bytes())
    frames = video.resize(video.read(path, list(range(look.frames))), LARGEST)
    return address("video/mp4", video.encode(frames, look.fps, crf=CRF))


def strip(frames: np.ndarray) -> str:
    """Pictures uint8 [n, h, w, 3] side by side, as the data address of a PNG with clear gaps."""
    opaque = np.concatenate([frames, np.full_like(frames[..., :1], 255)], axis=-1)
    gap = np.zeros((frames.shape[1], GAP, 4), np.uint8)
    parts = [part for frame in opaque for part in (gap, frame)][1:]
    return png(np.concatenate(parts, axis=1))


def flow_pictures(flow: np.ndarray) -> np.ndarray:
    """Flow [n, 2, h, w] as colours uint8 [n, h, w, 3]: hue for direction, saturation for speed, one scale for all."""
    u, v = flow.transpose(1, 0, 2, 3) / max(float(np.hypot(flow[:, 0], flow[:, 1]).max()), 1e-6)
    return np.stack([flow_vis.flow_uv_to_colors(*pair) for pair in zip(u, v, strict=True)])


@cache
def wheel(side: int = 96) -> str:
    """The key to the colours of flow: a disc, each place coloured as a movement from the centre to it."""
    v, u = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    inside = np.clip((1 - np.hypot(u, v)) * side / 2, 0, 1)  # soft edge of about a pixel
    colours = flow_vis.flow_uv_to_colors(u * (inside > 0), v * (inside > 0))
    return png(np.concatenate([colours, (inside * 255).astype(np.uint8)[..., None]], axis=-1))


def png(rgba: np.ndarray) -> str:
    """uint8 [h, w, 4] as the data address of a PNG."""
    written, data = cv2.imencode(".png", rgba[..., [2, 1, 0, 3]])
    if not written:
        raise RuntimeError("OpenCV could not write a PNG")
    return address("image/png", data.tobytes())


def address(kind: str, data: bytes) -> str:
    """A data: address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
