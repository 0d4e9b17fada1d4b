"""O, the optical flow that stage 1 learns to predict: torchvision's RAFT between token times (Sec. 3.2, A.3).

Flow is measured at `flow.size`, so it comes in pixels of that size and is nowhere rescaled (A6). Channel 0 is u,
positive to the right; channel 1 is v, positive downward. Stored as int16 in 1/64 pixel, deflated.
"""

import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import optical_flow
from torchvision.models.optical_flow._utils import make_coords_grid, upsample_flow

from moalign.config import Flow
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.teacher import freeze, weights
from moalign.teacher.videomae import view

STEPS = 64  # per pixel, of the stored int16: up to 512 px, rounded by no more than 1/128 px
LIMIT = torch.iinfo(torch.int16)
RELEASED = {
    "raft_large": "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
    "raft_small": "raft_small_C_T_V2-01064c6d.pth",
}


def load(flow: Flow) -> nn.Module:
    """RAFT with the state dict at `flow.weights`: frozen, eval, fp32."""
    path = Path(flow.weights)
    needed = f"flow.weights needs a state dict of {flow.model}, as torchvision's {RELEASED[flow.model]}"
    if not path.is_file():
        raise Problem(f"{path}: no such file; {needed} (download.pytorch.org/models) at that path")
    state = weights.unpickle(path, needed)
    with torch.random.fork_rng(devices=[]):
        raft = getattr(optical_flow, flow.model)(weights=None)
    try:
        raft.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError):
        raise Problem(f"{path}: its weights are not those of a {flow.model}; change flow.model, or: {needed}") from None
    return freeze(raft)


@torch.no_grad()
def flow(raft: nn.Module, x0: Tensor, grid: Grid, row: Flow) -> Tensor:
    """O: x0 [B, 3, F, H, W] in [-1, 1] -> [B, Fm-1, 2, h, w] in pixels of `row.size`.

    One flow per step from a token time to the next (`transitions`), over the part of the picture that motion tokens
    cover. Each frame's features are computed once, though most frames end one pair and begin another.
    """
    x0_seen = view(x0, grid, row.size)
    steps = transitions(row.reading, grid.flows, grid.teacher_tubelet)
    pairs = [pair for step in steps for pair in step]
    used = sorted({frame for pair in pairs for frame in pair})
    first, second = (torch.tensor([used.index(pair[end]) for pair in pairs], device=x0.device) for end in (0, 1))
    flows = []
    for clip in x0_seen.transpose(1, 2):  # [F-1, 3, h, w]
        frames = clip[used]
        features = encode(raft, frames)
        O = match(raft, features[first], features[second], frames[first], row.updates)
        flows.append(O.unflatten(0, (len(steps), -1)).sum(1))
    return torch.stack(flows)


def transitions(reading: str, flows: int, tubelet: int) -> list[list[tuple[int, int]]]:
    """Frame pairs whose flows, summed, lead from token k to token k + 1; frames counted after frame 0 is dropped (A5).

    Token k covers frames `tubelet * k` and those up to the next token's. With a tubelet of two:
    stride2: 2k -> 2k+2, all motion in one pair; adjacent: 2k+1 -> 2k+2, neighbours, half of the motion;
    sum: 2k -> 2k+1 and 2k+1 -> 2k+2, each pixel's two vectors added.
    """
    starts = range(0, flows * tubelet, tubelet)
    if reading == "stride2":
        return [[(k, k + tubelet)] for k in starts]
    if reading == "adjacent":
        return [[(k + tubelet - 1, k + tubelet)] for k in starts]
    if reading == "sum":
        return [[(k + i, k + i + 1) for i in range(tubelet)] for k in starts]
    raise Problem(f"flow.reading: {reading!r} is not known; allowed: stride2, adjacent, sum")


@torch.no_grad()
def flow_on(raft: nn.Module, frames: Tensor, updates: int = 12) -> Tensor:
    """Flow from each frame to the next, [N, 3, h, w] in [-1, 1] -> [N-1, 2, h, w] in pixels."""
    features = encode(raft, frames)
    return match(raft, features[:-1], features[1:], frames[:-1], updates)


def encode(raft: nn.Module, frames: Tensor) -> Tensor:
    """RAFT's features of frames [N, 3, h, w] -> [N, C, h/8, w/8], fp32. Sizes that do not suit it are refused here."""
    height, width = frames.shape[-2:]
    if height % 8 or width % 8 or min(height, width) < 128:
        raise Problem(f"flow.size: RAFT was given frames of {height} x {width}; sides are multiples of 8, at least 128")
    with torch.autocast(frames.device.type, enabled=False):
        return raft.feature_encoder(frames.float())


def match(raft: nn.Module, features: Tensor, others: Tensor, frames: Tensor, updates: int) -> Tensor:
    """RAFT's recurrent part, from features of first and second frames -> [N, 2, h, w]. `frames` are the first.

    torchvision's forward from there on, except that it upsamples the last estimate alone.
    """
    with torch.autocast(frames.device.type, enabled=False):
        raft.corr_block.build_pyramid(features, others)
        size = raft.update_block.hidden_state_size
        hidden, context = raft.context_encoder(frames.float()).tensor_split([size], dim=1)
        hidden, context = hidden.tanh(), context.relu()
        start = make_coords_grid(len(frames), *features.shape[-2:], device=frames.device)
        now = start
        for _ in range(updates):
            correlation = raft.corr_block.index_pyramid(now)
            hidden, change = raft.update_block(hidden, context, correlation, now - start)
            now = now + change
        mask = None if raft.mask_predictor is None else raft.mask_predictor(hidden)
        return upsample_flow(now - start, mask)


def pack(O: Tensor) -> Tensor:
    """Flow [Fm-1, 2, h, w] in pixels -> uint8 [bytes]: int16 in 1/64 pixel, each less its left neighbour, deflated.

    A sixth of int16 as it is, since flow is smooth. What int16 cannot hold saturates, and is counted by `outside`.
    """
    steps = (O.float() * STEPS).nan_to_num(0.0).round().clamp(LIMIT.min, LIMIT.max).to(torch.int16)
    changes = np.diff(steps.cpu().numpy(), axis=-1, prepend=np.int16(0))  # modulo 2^16, and so is the way back
    return torch.frombuffer(bytearray(zlib.compress(changes.astype("<i2").tobytes())), dtype=torch.uint8)


def unpack(stored: Tensor, size: tuple[int, int]) -> Tensor:
    """What `pack` made of a flow of this size -> flow [Fm-1, 2, h, w] in pixels, fp32."""
    try:
        changes = np.frombuffer(zlib.decompress(stored.numpy()), "<i2").reshape(-1, 2, *size)
    except (zlib.error, ValueError) as error:
        raise Problem(f"flow.size: a stored flow is not of {size[0]} x {size[1]} ({error}); run `flow` again") from None
    return torch.from_numpy(changes.cumsum(axis=-1, dtype=np.int16)).float() / STEPS


def outside(O: Tensor) -> int:
    """How many values `pack` cannot hold: beyond 512 px, or not a number."""
    scaled = (O.float() * STEPS).round()
    return int((~((scaled >= LIMIT.min) & (scaled <= LIMIT.max))).sum())
