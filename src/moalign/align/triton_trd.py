"""`losses._Relations` as one CUDA kernel: value and gradient of a weighted sum over token pairs, in one launch.

A program owns a block of rows i and walks over all columns j, so the full square of E is made where its triangle would
do: half as much arithmetic again, but no two programs add to the same number, so every run gives the same bits.
Products are IEEE fp32, not TF32: near convergence |E| is small beside the similarities it is the difference of, and
with three digits its sign, which is the gradient, would be noise.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS, DEPTH = 64, 32, 32  # tokens i, tokens j, and channels of a product at a time
WIDTH = 256  # channels of the gradient that a program holds; wider tokens take more programs, which make E again


@triton.jit
def _similarity(x, i, j, N, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """x_i . x_j, [ROWS, COLUMNS]; zero for a token beyond N. x: [N, D]."""
    S = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, D, DEPTH):
        d = start + tl.arange(0, DEPTH)
        x_i = tl.load(x + i[:, None] * D + d[None, :], mask=(i[:, None] < N) & (d[None, :] < D), other=0.0)
        x_j = tl.load(x + j[None, :] * D + d[:, None], mask=(j[None, :] < N) & (d[:, None] < D), other=0.0)
        S = tl.dot(x_i, x_j, S, input_precision="ieee")
    return S


@triton.jit
def _kernel(
    z,  # [B, N, D]
    m,  # [B, N, D_m]
    G,  # [F, F]
    values,  # [B, blocks of rows], written
    gradient,  # [B, N, D], written
    N,
    P,
    F,
    margin,
    D: tl.constexpr,
    D_m: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    block, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    z += b * N * D
    m += b * N * D_m
    i = block * ROWS + tl.arange(0, ROWS)
    c = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    value = tl.zeros((ROWS,), tl.float32)
    slope = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in range(0, N, COLUMNS):
        j = start + tl.arange(0, COLUMNS)
        # Two products of one shape, subtracted: equal student and teacher give exactly 0.
        E = _similarity(z, i, j, N, D, ROWS, COLUMNS, DEPTH) - _similarity(m, i, j, N, D_m, ROWS, COLUMNS, DEPTH)
        inside = (i[:, None] < N) & (j[None, :] < N)
        weight = tl.load(G + (i[:, None] // P) * F + j[None, :] // P, mask=inside, other=0.0)
        excess = tl.abs(E) - margin
        weight = tl.where(excess > 0, weight, 0.0)
        value += tl.sum(weight * excess, 1)
        z_j = tl.load(z + j[:, None] * D + c[None, :], mask=(j[:, None] < N) & (c[None, :] < D), other=0.0)
        slope = tl.dot(tl.where(E > 0, weight, -weight), z_j, slope, input_precision="ieee")
    if tl.program_id(2) == 0:
        tl.store(values + b * tl.num_programs(0) + block, tl.sum(value, 0))
    # E is symmetric: token i is a row and a column of it, hence 2.
    kept = (i[:, None] < N) & (c[None, :] < D)
    tl.store(gradient + b * N * D + i[:, None] * D + c[None, :], 2 * slope, mask=kept)


def constants(D: int, D_m: int) -> dict[str, int]:
    """What the kernel is compiled for, from the widths of student and teacher."""
    width = min(WIDTH, max(16, triton.next_power_of_2(D)))  # 16: the least that a product takes
    return {"D": D, "D_m": D_m, "WIDTH": width, "ROWS": ROWS, "COLUMNS": COLUMNS, "DEPTH": DEPTH}


def relations(z: Tensor, m: Tensor, G: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """sum_b sum_ij G[f(i), f(j)] max(|E_ij| - margin, 0), fp64, and its gradient with respect to z.

    z, m: unit tokens [B, F, P, D], contiguous, fp32, each of its own width D; G: [F, F], symmetric.
    """
    B, F, P, D = z.shape
    N = F * P
    given = constants(D, m.shape[-1])
    blocks = triton.cdiv(N, ROWS)
    grid = blocks, B, triton.cdiv(D, given["WIDTH"])
    values, gradient = z.new_empty(B, blocks), torch.empty_like(z)
    with torch.cuda.device_of(z):  # Triton launches on the current device, whatever holds the tensors
        _kernel[grid](
            z, m, G.to(z.dtype).contiguous(), values, gradient, N, P, F, margin,
            **given, num_warps=4 if given["WIDTH"] <= 64 else 8,
        )  # fmt: skip
    return values.double().sum(), gradient
