"""P_zeta: from the transformer's tokens Y to student tokens Z on the grid of M (A.4; Sec. 4.1 for `mlp`)."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import interpolate

from moalign.errors import Problem
from moalign.grid import Grid


class Projector(nn.Module):
    """Channels down, time up, space down: Y [B, Ft, Ht, Wt, width] -> Z [B, Fm, Hm, Wm, out].

    conv: (3,1,1) convolution width -> hidden, SiLU, 1x1x1 convolution -> out, SiLU (A.4).
    mlp:  four linear layers with SiLU between them, token by token (Sec. 4.1) (A1).
    Then time is interpolated by `grid.upsample`, and a 3x3 convolution per frame, without activation, takes
    `grid.shrink` student tokens to one (A15). Latent 0 is dropped first, so no kernel mixes frame 0 in (A2, A16).
    """

    def __init__(self, grid: Grid, width: int, hidden: int, out: int, kind: str = "conv"):
        super().__init__()
        if kind not in CHANNELS:
            raise Problem(f"align.projector: {kind!r} is not a projector; allowed: {', '.join(CHANNELS)}")
        self.grid = grid
        self.width = width
        self.channels = CHANNELS[kind](width, hidden, out)
        # 3 tokens to 1 without padding (paper), or 1 to 1 with it (miniature): `Grid.check` allows no other.
        self.space = nn.Conv2d(out, out, 3, stride=grid.shrink, padding=1 if grid.shrink == 1 else 0)

    def forward(self, Y: Tensor) -> Tensor:
        if Y.shape[1:] != (*self.grid.tokens, self.width):
            raise Problem(
                f"block output {list(Y.shape)} does not fit the projector, made for"
                f" [B, {', '.join(map(str, (*self.grid.tokens, self.width)))}]"
            )
        X = Y[:, 1:].permute(0, 4, 1, 2, 3)  # [B, width, Ft-1, Ht, Wt]
        X = self.channels(X)  # [B, out, Ft-1, Ht, Wt]
        X = interpolate(X, scale_factor=(self.grid.upsample, 1, 1), mode="trilinear", align_corners=False)
        X = self.space(X.transpose(1, 2).flatten(0, 1))  # [B*Fm, out, Hm, Wm]
        return X.unflatten(0, (len(Y), -1)).permute(0, 1, 3, 4, 2)


def conv(width: int, hidden: int, out: int) -> nn.Module:
    """A.4's stack, over [B, width, Ft-1, Ht, Wt]."""
    return nn.Sequential(
        OrderedDict(
            time=nn.Conv3d(width, hidden, (3, 1, 1), padding=(1, 0, 0)),
            act1=nn.SiLU(),
            point=nn.Conv3d(hidden, out, 1),
            act2=nn.SiLU(),
        )
    )


class PerToken(nn.Sequential):
    """Sec. 4.1's reading: four linear layers per token, SiLU between them, over [B, width, Ft-1, Ht, Wt]."""

    def __init__(self, width: int, hidden: int, out: int):
        layers = [nn.Linear(width, hidden), nn.SiLU()]
        for _ in range(2):
            layers += [nn.Linear(hidden, hidden), nn.SiLU()]
        super().__init__(*layers, nn.Linear(hidden, out))

    def forward(self, X: Tensor) -> Tensor:
        return super().forward(X.movedim(1, -1)).movedim(-1, 1)


CHANNELS = {"conv": conv, "mlp": PerToken}
