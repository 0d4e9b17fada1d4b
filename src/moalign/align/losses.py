"""The losses of both stages, one function per equation: Eq. 1, 4, 5-8, the denoising part of Eq. 9, and VideoREPA's
released loss beside them.

Eq. 8 is one weighted sum over token pairs. With z, m the tokens at unit length and f(i) the frame of token i,

    L = mean_b sum_ij G[f(i), f(j)] |E_ij|,    E = z z^T - m m^T,
    G[f, f] = 1 / (F P^2)  (spatial),    G[f, g] = exp(-|f - g| / tau) / N^2  (temporal),    N = F P,

and its gradient is dL/dz = 2 (G o sign E) z. So value and gradient are made together, tile by tile of E, and no
N x N matrix is ever stored. `soft_trd_dense` is the same loss as the paper writes it; tests hold the two together, and
`python tests/bench_loss.py` measures them.
"""

import math
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import normalize, softshrink

from moalign.config import Method
from moalign.errors import Problem

TILE = 2, 4  # frames of rows and columns of E at a time: 300 x 600 tokens at the paper's size, which a cache holds
EPS = 1e-6  # a token shorter than this counts as zero: divided by EPS, it keeps a finite gradient
MOVING = 0.5  # pixels: from here on a pixel of O counts as moving


def full(X: Tensor) -> Tensor:
    """fp32, whatever autocast made of it; fp64 stays."""
    return X if X.dtype == torch.float64 else X.float()


def unit(X: Tensor) -> Tensor:
    """Tokens [..., D] at unit length, x / max(|x|, EPS), so that sim(a, b) = a . b."""
    return normalize(full(X), dim=-1, eps=EPS)


def zero_tokens(X: Tensor) -> Tensor:
    """How many tokens of [..., D] are too short to have a direction: a number that belongs into a training log."""
    return (full(X.detach()).norm(dim=-1) < EPS).sum()


def cosine(Z: Tensor, M: Tensor) -> Tensor:
    """L_REPA, Eq. 1: minus the mean cosine between student token and target token. Z, M: [B, F, P, D]."""
    _check_pair(Z, M, axes=4)
    return -(unit(Z) * unit(M.detach())).sum(-1).mean()


def crepa(Z: Tensor, M: Tensor, tau: float) -> Tensor:
    """CREPA: a frame's student tokens against the targets of that frame and of its two neighbours (Hwang et al., 2025).

    Minus the mean over frames f of cos(Z_f, M_f) + sum over k = f-1, f+1 of exp(-|k - f| / tau) cos(Z_f, M_k), place by
    place; frames beyond the ends are left out. Z, M: [B, F, P, D].
    """
    _check_pair(Z, M, axes=4)
    z, m = unit(Z), unit(M.detach())
    near = math.exp(-1 / tau) * ((z[:, :-1] * m[:, 1:]).sum() + (z[:, 1:] * m[:, :-1]).sum())
    return -((z * m).sum() + near) / (z.numel() / z.shape[-1])


def temporal_weight(frames: int, tau: float, device: torch.device | str = "cpu") -> Tensor:
    """W, Eq. 7, by frame: [F, F] fp64, exp(-Delta / tau) with Delta in motion frames, 0 within a frame.

    tau = inf gives 1 everywhere but on the diagonal.
    """
    f = torch.arange(frames, dtype=torch.float64, device=device)
    return torch.exp(-(f[:, None] - f).abs() / tau).fill_diagonal_(0)


def soft_trd(Z: Tensor, M: Tensor, tau: float, denominator: str = "all") -> Tensor:
    """L_align, Eq. 8, from S_spatial (Eq. 5), S_temporal (Eq. 6) and W (Eq. 7).

    Z, M: [B, F, P, D] student and motion tokens; M is a constant, and may have a width of its own. tau in motion
    frames (A12); inf is the unweighted row of Tab. 4 (A10). Both norms are means, with equal weight (A9): the spatial
    one over P^2 pairs and F frames, the temporal one over all N^2 entries, the zeros of W included (`denominator`
    "all"), or over the N^2 - F P^2 pairs between frames ("off_diagonal") (A8).
    """
    _check_pair(Z, M, axes=3)
    frames, tokens = Z.shape[1:3]
    spatial = torch.eye(frames, dtype=torch.float64, device=Z.device) / (frames * tokens**2)
    G = spatial + temporal_weight(frames, tau, Z.device) / _temporal_pairs(frames, tokens, denominator)
    return _Relations.apply(unit(Z), unit(M.detach()), G, 0.0)


def soft_trd_dense(Z: Tensor, M: Tensor, tau: float, denominator: str = "all") -> Tensor:
    """`soft_trd` as the paper writes it, N x N matrices and all: the reference of tests and benchmarks."""
    _check_pair(Z, M, axes=3)
    frames, tokens = Z.shape[1:3]
    z, m = unit(Z), unit(M.detach())
    S_spatial = z @ z.mT, m @ m.mT  # Eq. 5: [B, F, P, P]
    spatial = (S_spatial[0] - S_spatial[1]).abs().mean()
    z, m = z.flatten(1, 2), m.flatten(1, 2)
    S_temporal = z @ z.mT, m @ m.mT  # Eq. 6: [B, N, N]
    W = temporal_weight(frames, tau, Z.device).to(z.dtype)
    W = W.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)  # Eq. 7: [N, N]
    temporal = (W * S_temporal[0] - W * S_temporal[1]).abs().sum((1, 2)).mean()
    return spatial + temporal / _temporal_pairs(frames, tokens, denominator)


def trd(Z: Tensor, M: Tensor, margin: float = 0.1) -> Tensor:
    """VideoREPA's loss as its authors released it: mean over all N^2 pairs of max(|S_Z - S_M| - margin, 0) (A10, A11).

    Z, M: [B, F, P, D]; M is a constant. Pairs within a frame are pooled with the rest, so they count 1/F in all.
    """
    _check_pair(Z, M, axes=3)
    frames, tokens = Z.shape[1:3]
    G = torch.full((frames, frames), (frames * tokens) ** -2, dtype=torch.float64, device=Z.device)
    return _Relations.apply(unit(Z), unit(M.detach()), G, float(margin))


def flow_l1(O_hat: Tensor, O: Tensor, foreground: float = 1.0) -> Tensor:
    """L_flow, Eq. 4: mean absolute difference over all elements, u and v alike (A7). O_hat, O: [B, Fm-1, 2, h, w].

    `foreground` weighs the pixels that move, |O| > 0.5 px: a clip is its weighted mean, and 1 is the paper's. The
    mean over clips is plain, so that it does not matter how a step is split.
    """
    O_hat, O = full(O_hat), full(O)
    moving = O.norm(dim=2, keepdim=True) > MOVING
    weight = torch.where(moving, foreground, 1.0).to(O.dtype).expand_as(O)
    of_clip = (weight * (O_hat - O).abs()).flatten(1).sum(1) / weight.flatten(1).sum(1)
    return of_clip.mean()


def mse(prediction: Tensor, target: Tensor) -> Tensor:
    """L_diff of Eq. 9: mean squared error over all elements, in fp32."""
    return (full(prediction) - full(target)).square().mean()


def _check_pair(Z: Tensor, M: Tensor, axes: int) -> None:
    if Z.ndim != 4 or M.ndim != 4 or Z.shape[:axes] != M.shape[:axes]:
        raise Problem(
            f"student tokens {list(Z.shape)} and target tokens {list(M.shape)} do not pair up as [B, F, P, D];"
            " make the targets again for this backbone"
        )


def _temporal_pairs(frames: int, tokens: int, denominator: str) -> int:
    """By how much the temporal sum of Eq. 8 is divided (A8)."""
    pairs = {"all": frames**2 * tokens**2, "off_diagonal": max(1, frames * (frames - 1) * tokens**2)}
    if denominator not in pairs:
        raise Problem(f"denominator: {denominator!r} is not known; allowed: {', '.join(pairs)}")
    return pairs[denominator]


class _Relations(torch.autograd.Function):
    """mean_b sum_ij G[f(i), f(j)] max(|E_ij| - margin, 0) of unit tokens z, m [B, F, P, D]; G [F, F] symmetric.

    The gradient with respect to z is made on the way forward, when each tile of E is at hand, and only scaled on the
    way back: one pass, nothing kept but a tensor of z's shape. Its radial part, noise of E's diagonal included, is
    left in; the Jacobian of `unit` takes it out. fp32 on CUDA is one Triton kernel, all else `_sweep`.
    """

    @staticmethod
    def forward(ctx, z: Tensor, m: Tensor, G: Tensor, margin: float) -> Tensor:
        z, m = z.contiguous(), m.contiguous()  # one layout, hence one kernel for both
        G = G / len(z)
        if z.is_cuda and z.dtype == torch.float32 and find_spec("triton"):
            from moalign.align.triton_trd import relations

            value, gradient = relations(z, m, G, margin)
        else:
            gradient = torch.zeros_like(z)
            value = sum(_sweep(*clip, G, margin) for clip in zip(z, m, gradient, strict=True))
        ctx.save_for_backward(gradient)
        return value.to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None, None


def _sweep(z: Tensor, m: Tensor, gradient: Tensor, G: Tensor, margin: float) -> Tensor:
    """One clip's sum of `_Relations` (returned, fp64) and its gradient (added). z, m, gradient: [F, P, D].

    It goes in tiles of E, TILE frames by frames, on and above the diagonal. S_Z and S_M are two products of one shape,
    subtracted: where student and teacher are equal they agree to the last bit, so loss and gradient are exactly 0.
    (One product of [z|m] and [z|-m] would leave rounding noise there, and its sign.) Products are written to a place
    that is given, where autocast does not reach them.
    """
    frames, tokens, _ = z.shape
    # E and G are symmetric: a pair of frames stands for both of its blocks, a frame with itself for one.
    G = (2 * G.triu() - G.diag().diag()).to(z.dtype)
    value = torch.zeros((), dtype=torch.float64, device=z.device)
    room = z.new_empty(2, TILE[0] * TILE[1] * tokens**2)  # two tiles, used again and again
    for f in range(0, frames, TILE[0]):
        rows = slice(f, f + TILE[0])
        z_rows, m_rows, gradient_rows = (x[rows].flatten(0, 1) for x in (z, m, gradient))
        for g in range(f, frames, TILE[1]):
            columns = slice(g, g + TILE[1])
            z_columns, m_columns, gradient_columns = (x[columns].flatten(0, 1) for x in (z, m, gradient))
            shape = len(z_rows), len(z_columns)
            E, S = room[:, : math.prod(shape)].view(2, *shape)
            torch.mm(z_rows, z_columns.mT, out=E)
            torch.mm(m_rows, m_columns.mT, out=S)
            E -= S
            if margin:
                E = softshrink(E, margin)  # sign(E) max(|E| - margin, 0)
            torch.sign(E, out=S)
            weight = G[rows, columns].repeat_interleave(tokens, 1)[:, None]  # by token along a row: one long inner loop
            S.view(-1, tokens, shape[1]).mul_(weight)  # G o sign E
            value += torch.dot(S.view(-1), E.view(-1))
            gradient_rows.addmm_(S, z_columns)  # product rule: rows, then columns
            gradient_columns.addmm_(S.mT, z_rows)
    return value


LOSSES: dict[str, Callable[[Tensor, Tensor, Method], Tensor]] = {
    "cosine": lambda Z, M, method: cosine(Z, M),
    "crepa": lambda Z, M, method: crepa(Z, M, method.tau),
    "soft_trd": lambda Z, M, method: soft_trd(Z, M, method.tau, method.denominator),
    "trd": lambda Z, M, method: trd(Z, M, method.margin),
}
