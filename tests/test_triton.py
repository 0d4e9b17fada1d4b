"""The kernel of `triton_trd` against Eq. 8 in fp64. Without a GPU it runs in Triton's interpreter, and is compiled.

The interpreter has to be chosen before triton is imported, so a process of its own runs all cases: this file, as a
program, writes {case: (value, gradient)}.
"""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moalign.align import losses
from moalign.align.losses import soft_trd, soft_trd_dense, trd

# B, F, P, D of the student, D of the teacher; N = F P divides none of the blocks' sizes, 64 and 32, except once.
SHAPES = [
    (2, 3, 7, 24, 24),
    (1, 4, 50, 64, 64),
    (1, 2, 64, 64, 64),
    (2, 1, 33, 100, 40),
    (1, 3, 25, 768, 768),
    (1, 5, 1, 3, 4),
]
LOSSES = {"Eq. 8": lambda Z, M: soft_trd(Z, M, 10.0), "margin 0": lambda Z, M: trd(Z, M, 0.0), "margin 0.1": trd}
EQUAL = (2, 3, 35)  # B, F, P of the case in which student and teacher are the same
WIDTHS = [24, 64, 100, 768]
VALUE, GRADIENT = 1e-6, 1e-4  # relative to fp64: rounding; and pairs whose E is so near 0 that fp32 turns its sign
FLIPS = 2  # times the gradient error of plain fp32: at the paper's size that alone is 6e-4 for a margin


def tokens(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Z and M, fp32."""
    rng = torch.Generator().manual_seed(0)
    Z = torch.randn(shape[:4], generator=rng)
    return Z, torch.randn(*shape[:3], shape[4], generator=rng)


def value_and_gradient(loss: Callable, Z: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    Z = Z.clone().requires_grad_()
    value = loss(Z, M)
    return value.detach(), torch.autograd.grad(value, Z)[0]


def by_kernel(loss: Callable, Z: Tensor, M: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient where `_Relations` is the interpreted kernel."""
    from moalign.align.triton_trd import relations

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, m, G, margin):
            value, gradient = relations(z.contiguous(), m.contiguous(), G / len(z), margin)
            ctx.save_for_backward(gradient)
            return value.to(z.dtype)

        backward = losses._Relations.backward

    losses._Relations = Kernel
    return value_and_gradient(loss, Z, M)


def main(out: str) -> None:
    torch.set_num_threads(1)
    cases = {(name, shape): by_kernel(loss, *tokens(shape)) for name, loss in LOSSES.items() for shape in SHAPES}
    for width in WIDTHS:
        M = tokens((*EQUAL, width, width))[1]
        cases["equal", width] = by_kernel(LOSSES["Eq. 8"], M, M)
    torch.save(cases, out)


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    out = tmp_path_factory.mktemp("triton") / "cases.pt"
    subprocess.run([sys.executable, __file__, out], check=True, env=os.environ | {"TRITON_INTERPRET": "1"})
    return torch.load(out)


def assert_near(case: tuple[Tensor, Tensor], name: str, shape: tuple[int, ...]) -> None:
    """The same as fp64 says, by the dense form for Eq. 8 and by the one pass of the CPU for a margin."""
    loss = (lambda Z, M: soft_trd_dense(Z, M, 10.0)) if name == "Eq. 8" else LOSSES[name]
    value, gradient = value_and_gradient(loss, *(x.double() for x in tokens(shape)))
    assert abs(case[0].cpu() - value) <= VALUE * value
    plain = (value_and_gradient(LOSSES[name], *tokens(shape))[1] - gradient).norm()
    assert (case[1].cpu() - gradient).norm() <= max(GRADIENT * gradient.norm(), FLIPS * plain)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_kernel_equals_fp64(interpreted, name, shape):
    assert_near(interpreted[name, shape], name, shape)


@pytest.mark.parametrize("width", WIDTHS)
def test_equal_student_and_teacher_give_exactly_nothing(interpreted, width):
    value, gradient = interpreted["equal", width]
    assert value == 0
    assert gradient.eq(0).all()


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("width", [64, 768])
def test_it_compiles_to_ieee_products(width, capability, tmp_path, monkeypatch):
    """For an A100 and an H100, on any machine: fused multiply-adds, and no tensor core, which would mean TF32."""
    triton = pytest.importorskip("triton")
    from moalign.align.triton_trd import _kernel, constants

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    given = constants(width, width)
    types = dict.fromkeys(_kernel.arg_names, "*fp32") | dict.fromkeys("NPF", "i32") | {"margin": "fp32"}
    types |= dict.fromkeys(given, "constexpr")
    source = triton.compiler.ASTSource(_kernel, types, given)
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    ptx = triton.compile(source, target=target).asm["ptx"]
    assert "fma.rn.f32" in ptx
    assert "mma" not in ptx


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [*SHAPES, (2, 24, 150, 64, 64)], ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_kernel_equals_fp64(name, shape):
    assert_near(value_and_gradient(LOSSES[name], *(x.cuda() for x in tokens(shape))), name, shape)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("width", WIDTHS)
def test_compiled_kernel_gives_exactly_nothing_for_equals(width):
    M = tokens((*EQUAL, width, width))[1].cuda()
    value, gradient = value_and_gradient(LOSSES["Eq. 8"], M, M)
    assert value == 0
    assert gradient.eq(0).all()


if __name__ == "__main__":
    main(sys.argv[1])
