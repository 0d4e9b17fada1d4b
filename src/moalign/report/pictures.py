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
BAND = 16  # pixels of a line of text; x264 repeats itself at multiples of 16 alone
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


def matrix(values: np.ndarray, low: float = -1.0, high: float = 1.0, side: int = 256) -> str:
    """A square matrix as a picture, dark for `low`, bright for `high`, in an order that the colour-blind see too."""
    scaled = np.clip((values - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    side = max(side, len(values))
    scaled = cv2.resize(scaled, (side, side), interpolation=cv2.INTER_NEAREST)
    colours = cv2.applyColorMap(scaled, cv2.COLORMAP_CIVIDIS)
    return png(np.dstack([colours[..., ::-1], np.full(colours.shape[:2], 255, np.uint8)]))


def components(tokens: np.ndarray, side: int = 64) -> np.ndarray:
    """Tokens [F, H, W, D] as pictures uint8 [F, side, side', 3]: their first three principal components as colours.

    Each component fills its channel from its 1st to its 99th percentile; its sign makes the larger tail bright.
    """
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(0)
    _, _, basis = np.linalg.svd(flat, full_matrices=False)
    found = flat @ basis[:3].T
    found *= np.where(np.abs(found.min(0)) > found.max(0), -1, 1)
    low, high = np.percentile(found, [1, 99], axis=0)
    colours = np.clip((found - low) / np.maximum(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    frames = colours.reshape(*tokens.shape[:3], 3)
    width = round(side * tokens.shape[2] / tokens.shape[1])
    return np.stack([cv2.resize(frame, (width, side), interpolation=cv2.INTER_NEAREST) for frame in frames])


def sheet(videos: list[np.ndarray], shown: int) -> np.ndarray:
    """Videos uint8 [F, H, W, 3] below each other, `shown` frames of each side by side: one picture uint8 [h, w, 3]."""
    rows = []
    for frames in videos:
        picked = frames[np.linspace(0, len(frames) - 1, shown).round().astype(int)]
        rows.append(np.pad(np.concatenate(list(picked), axis=1), ((0, GAP), (0, 0), (0, 0)), constant_values=255))
    return np.concatenate(rows, axis=0)


def mosaic(videos: list[np.ndarray], columns: int) -> np.ndarray:
    """Videos of one size side by side as one, uint8 [F, h, w, 3]; what is left of the last row is white."""
    frames = min(map(len, videos))
    blank = np.full_like(videos[0][:frames], 255)
    cells = [*(video[:frames] for video in videos), *[blank] * (-len(videos) % columns)]
    rows = [np.concatenate(cells[at : at + columns], axis=2) for at in range(0, len(cells), columns)]
    return np.concatenate(rows, axis=1)


def labelled(frames: np.ndarray, text: str) -> np.ndarray:
    """A video with a line of text above it."""
    band = np.full((BAND, frames.shape[2], 3), 255, np.uint8)
    cv2.putText(band, text, (2, BAND - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.36, (40, 40, 40), 1, cv2.LINE_AA)
    return np.concatenate([np.repeat(band[None], len(frames), axis=0), frames], axis=1)


def png(rgba: np.ndarray) -> str:
    """uint8 [h, w, 4] as the data address of a PNG."""
    written, data = cv2.imencode(".png", rgba[..., [2, 1, 0, 3]])
    if not written:
        raise RuntimeError("OpenCV could not write a PNG")
    return address("image/png", data.tobytes())


def address(kind: str, data: bytes) -> str:
    """A data: address."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
