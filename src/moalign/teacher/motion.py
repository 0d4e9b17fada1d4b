"""The two heads of stage 1: M_psi finds the motion subspace in S (Eq. 3), F_omega reads flow from it (Eq. 4). A.3."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from moalign.errors import Problem
from moalign.manifest import Manifest, Weights
from moalign.shards import write_tensors
from moalign.teacher import freeze


class MotionHead(nn.Module):
    """M_psi: S [B, Fm, Hm, Wm, D_v] -> M [B, Fm, Hm, Wm, D_m], M = M_psi(S) (Eq. 3).

    (3,1,1) convolution D_v -> channels[0], SiLU, 1x1x1 convolution -> channels[1] = D_m, SiLU. The last SiLU is part of
    M: its values are never far below 0 (A14).
    """

    def __init__(self, width: int, channels: Sequence[int]):
        super().__init__()
        hidden, self.width = channels  # self.width: D_m
        self.layers = nn.Sequential(
            OrderedDict(
                time=nn.Conv3d(width, hidden, (3, 1, 1), padding=(1, 0, 0)),
                act1=nn.SiLU(),
                point=nn.Conv3d(hidden, self.width, 1),
                act2=nn.SiLU(),
            )
        )

    def forward(self, S: Tensor) -> Tensor:
        return self.layers(S.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


class FlowDecoder(nn.Module):
    """F_omega: M [B, Fm, Hm, Wm, D_m] -> O_hat [B, Fm-1, 2, h, w], flow in pixels of `size` = (h, w) (Eq. 4).

    A (2,3,3) convolution takes Fm token times to the Fm-1 transitions between them; two transposed convolutions double
    the sides, each with padding 1, without which they would not double; a 3x3x3 convolution gives u and v, and
    trilinear interpolation the size. The prediction is resized, never rescaled: it learns the target's units (A6).
    """

    def __init__(self, D_m: int, decoder: Sequence[int], size: tuple[int, int]):
        super().__init__()
        first, second, third = decoder
        self.size = tuple(size)
        double = {"kernel_size": (1, 4, 4), "stride": (1, 2, 2), "padding": (0, 1, 1)}
        self.layers = nn.Sequential(
            OrderedDict(
                pairs=nn.Conv3d(D_m, first, (2, 3, 3), padding=(0, 1, 1)),
                act1=nn.ReLU(),
                up1=nn.ConvTranspose3d(first, second, **double),
                act2=nn.ReLU(),
                up2=nn.ConvTranspose3d(second, third, **double),
                act3=nn.ReLU(),
                flow=nn.Conv3d(third, 2, 3, padding=1),
            )
        )

    def forward(self, M: Tensor) -> Tensor:
        O_hat = self.layers(M.permute(0, 4, 1, 2, 3))  # [B, 2, Fm-1, 4 Hm, 4 Wm]
        size = (O_hat.shape[2], *self.size)
        return interpolate(O_hat, size=size, mode="trilinear", align_corners=False).transpose(1, 2)


def save(path: str | Path, head: MotionHead, decoder: FlowDecoder, metadata: dict[str, str] | None = None) -> None:
    """Export both heads of stage 1 as one safetensors file, names beginning `head.` and `decoder.`."""
    parts = {"head": head, "decoder": decoder}
    tensors = {f"{part}.{name}": value for part in parts for name, value in parts[part].state_dict().items()}
    write_tensors(path, tensors, metadata)


def load(weights: Manifest[Weights]) -> MotionHead:
    """M_psi as stage 1 exported it, frozen. Its widths are those of the file."""
    rows = [row for row in weights.rows if row.name == "teacher"]
    if not rows:
        raise Problem(f"{weights.path}: lists no teacher; give the manifest of stage 1")
    path = weights.locate(rows[0].file)
    try:
        tensors = load_file(path)
    except (FileNotFoundError, SafetensorError) as error:
        raise Problem(f"{path}: stage 1's export cannot be read ({error}); run stage 1 again") from None
    state = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    time, point = (state.get(f"layers.{layer}.weight") for layer in ("time", "point"))
    if time is None or point is None:
        raise Problem(f"{path}: holds no motion head; give the manifest of stage 1")
    head = MotionHead(time.shape[1], (time.shape[0], point.shape[0]))
    head.load_state_dict(state)
    return freeze(head)
