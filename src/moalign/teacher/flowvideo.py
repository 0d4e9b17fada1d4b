"""Optical flow as a video: a colour per vector, so that a video's own VAE can encode how it moves (VideoJAM).

The direction is the hue and the length the brightness: red moves to the right, black stands still.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from moalign.config import Flow
from moalign.teacher import raft

BRIGHTEST = 0.15  # of the picture's diagonal: vectors as long, or longer, have full brightness


@torch.no_grad()
def flow_video(network: nn.Module, x0: Tensor, row: Flow) -> Tensor:
    """x0 [B, 3, F, H, W] in [-1, 1] -> the same shape and range, frame k coloured by the flow from frame k to k + 1.

    RAFT runs on the whole frames at `row.size`; its vectors are resized to H x W and measured in pixels of it. The
    last of the F - 1 flows stands twice, since a causal VAE wants F frames.
    """
    size, (height, width) = x0.shape[-2:], row.size
    scale = x0.new_tensor([size[1] / width, size[0] / height]).view(2, 1, 1)
    videos = []
    for clip in x0.transpose(1, 2):  # [F, 3, H, W]
        frames = interpolate(clip.float(), size=(height, width), mode="bicubic", align_corners=False, antialias=True)
        features = raft.encode(network, frames)
        flow = raft.match(network, features[:-1], features[1:], frames[:-1], row.updates)
        video = picture(interpolate(flow, size=size, mode="bilinear", align_corners=False) * scale)
        videos.append(torch.cat([video, video[-1:]]))
    return torch.stack(videos).transpose(1, 2)


def picture(flow: Tensor) -> Tensor:
    """[..., 2, H, W] in pixels of H x W, u to the right and v downward -> RGB [..., 3, H, W] in [-1, 1].

    HSV with hue arctan2(v, u), saturation 1 and value m = min(1, |(u, v)| / (0.15 sqrt(H^2 + W^2))).
    """
    u, v = flow.unbind(-3)
    m = (torch.hypot(u, v) / (BRIGHTEST * math.hypot(*flow.shape[-2:]))).clamp(max=1)
    hue = torch.atan2(v, u) * (3 / math.pi)  # in sixths of the wheel
    away = [torch.remainder(hue + start, 6) for start in (5, 3, 1)]  # from where red, green and blue begin to fade
    return torch.stack([m * (1 - torch.minimum(k, 4 - k).clamp(0, 1)) for k in away], -3) * 2 - 1
