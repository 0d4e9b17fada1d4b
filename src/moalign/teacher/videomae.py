"""V, the frozen video encoder: VideoMAEv2's ViT, S = V(x0) (Sec. 3.2).

A plain ViT over space-time patches. Its weights carry the names of the released files, so that those load as they are:
`vit_b_k710_dl_from_giant.pth` is ViT-B, distilled from the giant model on Kinetics-710 (A4). The tokens are those after
the last block, with no norm, pooling or head behind it.
"""

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, linear, scaled_dot_product_attention

from moalign.config import Encoder
from moalign.grid import Grid
from moalign.manifest import disk, replacing
from moalign.teacher import freeze, weights

MEAN = (0.485, 0.456, 0.406)  # ImageNet, of pixels in [0, 1] (A29)
STD = (0.229, 0.224, 0.225)


def view(x0: Tensor, grid: Grid, size: tuple[int, int] | None = None) -> Tensor:
    """What the teacher sees of a clip: x0 [B, 3, F, H, W] -> [B, 3, F-1, h, w], (h, w) = `size` or else `grid.view`.

    Frame 0 is dropped (A2), the pixels that motion tokens cover are cut out, and antialiased bicubic interpolation
    gives the size. One function for flow, stage 1 and stage 2's targets, so that their pixels cannot differ (A28).
    """
    size = size or grid.view
    height, width = grid.crop
    frames = x0[:, :, 1:, :height, :width].float()
    if tuple(size) == grid.crop:
        return frames
    flat = frames.transpose(1, 2).flatten(0, 1)  # [B*(F-1), 3, H, W]
    flat = interpolate(flat, size=tuple(size), mode="bicubic", align_corners=False, antialias=True)
    return flat.unflatten(0, (len(x0), -1)).transpose(1, 2)


class VideoMAE(nn.Module):
    """frames [B, 3, F, h, w] in [-1, 1] -> S [B, Fm, Hm, Wm, D_v], in fp32 whatever autocast says.

    F is a multiple of the tubelet, h and w of the patch: whole cubes, any number of them.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.width = encoder.width
        cube = (encoder.tubelet, encoder.patch, encoder.patch)
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, encoder.width, cube, stride=cube)})
        self.blocks = nn.ModuleList(Block(encoder.width, encoder.heads) for _ in range(encoder.depth))
        native = [length // side for length, side in zip(encoder.native, cube, strict=True)]
        table = sinusoids(native[0] * native[1] * native[2], encoder.width)
        self.register_buffer("table", table.unflatten(0, native), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(3, 1, 1, 1), persistent=False)
        self.apply(_start)

    def forward(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, enabled=False):
            X, grid = self.embed(frames.float())
            for block in self.blocks:
                X = block(X)
            return X.unflatten(1, grid)

    def embed(self, frames: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
        """Patches with their positions, before the first block: [B, Fm*Hm*Wm, D_v] in time, row, column order."""
        pixels = ((frames + 1) / 2 - self.mean) / self.std
        X = self.patch_embed["proj"](pixels)  # [B, D_v, Fm, Hm, Wm]
        grid = tuple(X.shape[2:])
        return X.flatten(2).transpose(1, 2) + self.positions(grid), grid

    def positions(self, grid: tuple[int, int, int]) -> Tensor:
        """The native position table on another grid: bicubic in space, then linear in time -> [Fm*Hm*Wm, D_v]."""
        table = self.table
        if tuple(table.shape[1:3]) != grid[1:]:
            table = table.permute(0, 3, 1, 2)
            table = interpolate(table, size=grid[1:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
        if len(table) != grid[0]:
            rows = table.flatten(1).T[None]  # [1, Hm*Wm*D_v, Fn]
            rows = interpolate(rows, size=grid[0], mode="linear", align_corners=False)
            table = rows[0].T.view(*grid, self.width)
        return table.flatten(0, 2)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        layers = OrderedDict(fc1=nn.Linear(width, 4 * width), act=nn.GELU(), fc2=nn.Linear(4 * width, width))
        self.mlp = nn.Sequential(layers)

    def forward(self, X: Tensor) -> Tensor:
        X = X + self.attn(self.norm1(X))
        return X + self.mlp(self.norm2(X))


class Attention(nn.Module):
    """Full attention whose queries and values have a bias and whose keys have none."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.empty(width))
        self.v_bias = nn.Parameter(torch.empty(width))
        self.proj = nn.Linear(width, width)

    def forward(self, X: Tensor) -> Tensor:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        X = linear(X, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, heads, D_v/heads]
        X = scaled_dot_product_attention(*X.permute(2, 0, 3, 1, 4))
        return self.proj(X.transpose(1, 2).flatten(2))


def sinusoids(positions: int, width: int) -> Tensor:
    """Fixed position table [positions, width]: sin on even channels, cos on odd, one pair per frequency.

    Over the flattened native grid, so a token one row down is as far away as one `Wm` columns to the right; the
    released weights were trained with it and know no other.
    """
    pair = torch.arange(width, dtype=torch.float64) // 2
    angle = torch.arange(positions, dtype=torch.float64)[:, None] / 10000 ** (2 * pair / width)
    angle[:, 0::2], angle[:, 1::2] = angle[:, 0::2].sin(), angle[:, 1::2].cos()
    return angle.float()


def _start(module: nn.Module) -> None:
    """Random weights. The q and v biases are not zero either: in a file, all zeros then always means a lost bias."""
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Attention):
        nn.init.trunc_normal_(module.q_bias, std=0.02)
        nn.init.trunc_normal_(module.v_bias, std=0.02)


def load(encoder: Encoder) -> VideoMAE:
    """The encoder with the weights at `encoder.weights` (`teacher.weights` says which files): frozen, eval, fp32."""
    path = Path(encoder.weights)
    state = weights.read(path)
    weights.check_sizes(state, encoder, path)
    with torch.random.fork_rng(devices=[]):  # loading must not move anyone's random numbers
        model = VideoMAE(encoder)
    weights.check_names(state, model.state_dict(), path)
    model.load_state_dict(state)
    return freeze(model)


def save(model: VideoMAE, path: str | Path) -> None:
    """Write the weights as VideoMAEv2's authors do, nested under `module`; by rename."""
    path = Path(path)
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save({"module": {name: value.cpu() for name, value in model.state_dict().items()}}, temporary)
