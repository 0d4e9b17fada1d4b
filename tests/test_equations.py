"""Each equation of the paper against plain loops, in fp64: values and gradients. Then what the fast forms promise."""

import itertools
import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from moalign import config
from moalign.align.losses import (
    EPS,
    LOSSES,
    cosine,
    crepa,
    flow_l1,
    mse,
    soft_trd,
    soft_trd_dense,
    temporal_weight,
    trd,
    zero_tokens,
)
from moalign.align.objective import alignment
from moalign.errors import Problem

INF = math.inf
SHAPE = (2, 3, 2, 4)  # B, F, P, D of the loops
TAUS = [0.5, 10.0, INF]


def tokens(*shape, seed=0, dtype=torch.float64):
    """Z, which asks for a gradient, and M."""
    rng = torch.Generator().manual_seed(seed)
    Z, M = torch.randn(2, *shape, generator=rng, dtype=dtype)
    return Z.clone().requires_grad_(), M


def value_and_gradient(loss, Z):
    value = loss(Z)
    return value.detach(), torch.autograd.grad(value, Z)[0]


def assert_same(loss, reference, Z, value=1e-12, gradient=1e-12):
    """Both agree relative to the reference, or within a cosine's rounding (in a gradient: over the token's length)."""
    v, g = value_and_gradient(loss, Z)
    v_ref, g_ref = value_and_gradient(reference, Z)
    rounding = 2e-15 / Z.detach().norm(dim=-1).min().clamp(max=1)
    assert abs(v - v_ref) <= value * abs(v_ref) + 1e-15
    assert (g - g_ref).norm() <= gradient * g_ref.norm() + rounding


# --- the paper's equations, pair by pair ----------------------------------------------------------------------------


def sim(a, b):
    """Cosine similarity, one product at a time."""
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / (sum(x * x for x in a).sqrt() * sum(y * y for y in b).sqrt())


def eq1(Z, M):
    B, F, P, _ = Z.shape
    total = sum(sim(M[b, f, i], Z[b, f, i]) for b in range(B) for f in range(F) for i in range(P))
    return -total / (B * F * P)


def eq7(f, g, tau):
    return math.exp(-abs(f - g) / tau) if f != g else 0.0


def eq8(Z, M, tau, denominator="all"):
    B, F, P, _ = Z.shape
    places = [(f, i) for f in range(F) for i in range(P)]
    count = sum(1 for f, _ in places for g, _ in places if denominator == "all" or f != g)
    total = 0
    for z, m in zip(Z, M, strict=True):
        for f in range(F):  # Eq. 5, first term
            for i in range(P):
                for j in range(P):
                    total = total + abs(sim(z[f, i], z[f, j]) - sim(m[f, i], m[f, j])) / (F * P * P)
        for f, i in places:  # Eq. 6, second term
            for g, j in places:
                W = eq7(f, g, tau)
                total = total + abs(W * sim(z[f, i], z[g, j]) - W * sim(m[f, i], m[g, j])) / count
    return total / B


def released_trd(Z, M, margin):
    B, F, P, _ = Z.shape
    places = [(f, i) for f in range(F) for i in range(P)]
    total = 0
    for z, m in zip(Z, M, strict=True):
        for here in places:
            for there in places:
                excess = abs(sim(z[here], z[there]) - sim(m[here], m[there])) - margin
                total = total + (excess if excess > 0 else 0 * excess)
    return total / (B * len(places) ** 2)


def test_eq1_cosine():
    Z, M = tokens(*SHAPE)
    assert_same(lambda Z: cosine(Z, M), lambda Z: eq1(Z, M), Z)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("form", [soft_trd, soft_trd_dense])
@pytest.mark.parametrize("denominator", ["all", "off_diagonal"])
def test_eq8_soft_trd(form, tau, denominator):
    Z, M = tokens(*SHAPE)
    assert_same(lambda Z: form(Z, M, tau, denominator), lambda Z: eq8(Z, M, tau, denominator), Z)


@pytest.mark.parametrize("margin", [0.0, 0.1, 0.7])
def test_released_trd(margin):
    Z, M = tokens(*SHAPE)
    assert_same(lambda Z: trd(Z, M, margin), lambda Z: released_trd(Z, M, margin), Z)


@pytest.mark.parametrize("foreground", [1.0, 5.0])
def test_eq4_flow_l1(foreground):
    rng = torch.Generator().manual_seed(0)
    O_hat, O = torch.randn(2, 2, 3, 2, 4, 5, generator=rng, dtype=torch.float64)
    O[:, :, :, :2] *= 0.1  # half of the picture stands still

    def eq4(O_hat):
        means = 0.0
        for b in range(2):
            total = weights = 0.0
            for f in range(3):
                for y in range(4):
                    for x in range(5):
                        u, v = O[b, f, :, y, x]
                        weight = foreground if math.hypot(u, v) > 0.5 else 1.0
                        total = total + weight * ((O_hat[b, f, 0, y, x] - u).abs() + (O_hat[b, f, 1, y, x] - v).abs())
                        weights += 2 * weight
            means = means + total / weights / 2
        return means

    assert_same(lambda O_hat: flow_l1(O_hat, O, foreground), eq4, O_hat.requires_grad_())
    alone = [flow_l1(O_hat[b : b + 1], O[b : b + 1], foreground).item() for b in range(2)]
    assert flow_l1(O_hat, O, foreground).item() == pytest.approx(sum(alone) / 2, rel=1e-14)
    if foreground == 1.0:
        assert flow_l1(O_hat, O).item() == pytest.approx((O_hat - O).abs().mean().item(), rel=1e-14)


def test_eq9_denoising_part_is_fp32():
    a, b = torch.full((2, 1000), 3.0, dtype=torch.bfloat16), torch.full((2, 1000), 1.0, dtype=torch.bfloat16)
    assert mse(a, b).dtype == torch.float32
    assert mse(a, b) == 4.0


def test_eq7_weight():
    W = temporal_weight(24, 10.0)
    assert torch.equal(W, W.T)
    assert W.diagonal().eq(0).all()
    assert W.mean() == pytest.approx(0.4769, abs=5e-5)
    assert W[3, 7] == pytest.approx(math.exp(-0.4), rel=1e-15)
    assert torch.equal(temporal_weight(5, INF), 1 - torch.eye(5, dtype=torch.float64))


# --- how the forms relate -------------------------------------------------------------------------------------------


def test_tau_infinite_is_not_the_released_loss():
    """Margin 0: pooled mean = spatial / F + temporal, so Eq. 8 counts pairs within a frame F times as much (A10)."""
    Z, M = tokens(2, 5, 3, 8)
    spatial = soft_trd(Z, M, tau=1e-9)  # W vanishes
    temporal = soft_trd(Z, M, INF) - spatial
    assert trd(Z, M, margin=0.0).item() == pytest.approx((spatial / 5 + temporal).item(), rel=1e-13)


def test_off_diagonal_mean_differs_by_the_share_of_pairs():
    Z, M = tokens(2, 6, 3, 8)
    spatial = soft_trd(Z, M, tau=1e-9)
    everything, between = (soft_trd(Z, M, 10.0, denominator) - spatial for denominator in ("all", "off_diagonal"))
    assert (between / everything).item() == pytest.approx(6 / 5, rel=1e-12)


def test_it_does_not_see_the_length_of_a_token():
    Z, M = tokens(2, 4, 3, 8)
    scale = torch.rand(2, 4, 3, 1, dtype=torch.float64) * 100 + 0.01
    for loss in (lambda Z: soft_trd(Z, M, 10.0), lambda Z: trd(Z, M), lambda Z: cosine(Z, M)):
        assert loss(Z * scale).item() == pytest.approx(loss(Z).item(), rel=1e-12)


def test_it_sees_relations_alone():
    """A rotation of all student tokens, or another width of the teacher's, changes nothing: only pairs are compared."""
    Z, M = tokens(2, 4, 3, 8)
    rotation = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    padded = torch.cat([M, torch.zeros(2, 4, 3, 5, dtype=torch.float64)], dim=-1)
    assert soft_trd(Z @ rotation, padded, 10.0).item() == pytest.approx(soft_trd(Z, M, 10.0).item(), rel=1e-12)


# --- the one-pass form ----------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (4, 7, 6, 9))),
    tau=st.one_of(st.floats(0.05, 100.0), st.just(INF)),
    denominator=st.sampled_from(["all", "off_diagonal"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_one_pass_equals_dense(shape, tau, denominator, seed):
    Z, M = tokens(*shape, seed=seed)
    one, dense = (lambda Z, form=form: form(Z, M, tau, denominator) for form in (soft_trd, soft_trd_dense))
    assert_same(one, dense, Z, value=1e-14, gradient=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 6, 5, 9))),
    margin=st.floats(0.0, 1.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_released_trd_equals_its_matrix_form(shape, margin, seed):
    Z, M = tokens(*shape, seed=seed)

    def dense(Z):
        z, m = (torch.nn.functional.normalize(X.flatten(1, 2), dim=-1, eps=EPS) for X in (Z, M))
        return ((z @ z.mT - m @ m.mT).abs() - margin).relu().mean()

    assert abs(trd(Z, M, margin) - dense(Z)) <= 1e-13
    if dense(Z) > 1e-13:  # below, only rounding is left of it: the sign of a zero is anyone's
        assert_same(lambda Z: trd(Z, M, margin), dense, Z, value=1e-13, gradient=1e-12)


@pytest.mark.parametrize("loss", [lambda Z, M: soft_trd(Z, M, 3.0), trd], ids=["soft_trd", "trd"])
def test_gradcheck(loss):
    Z, M = tokens(2, 3, 3, 5)
    assert torch.autograd.gradcheck(lambda Z: loss(Z, M), (Z,), eps=1e-7, atol=1e-6)


def test_gradient_scales_with_what_comes_from_above():
    Z, M = tokens(2, 3, 4, 5)
    plain = value_and_gradient(lambda Z: soft_trd(Z, M, 10.0), Z)[1]
    scaled = value_and_gradient(lambda Z: -3.0 * soft_trd(Z, M, 10.0), Z)[1]
    assert (scaled + 3 * plain).norm() <= 1e-14 * scaled.norm()


@pytest.mark.parametrize("width", [3, 64, 768])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "loss", [lambda Z, M: soft_trd(Z, M, 10.0), lambda Z, M: trd(Z, M, 0.0)], ids=["soft_trd", "trd"]
)
def test_equal_student_and_teacher_give_exactly_nothing(loss, dtype, width):
    M = torch.randn(2, 6, 35, width).to(dtype)
    for Z in (M.clone(), M.transpose(1, 2).contiguous().transpose(1, 2)):  # the same, and the same in another layout
        value, gradient = value_and_gradient(lambda Z: loss(Z, M), Z.requires_grad_())
        assert value == 0
        assert gradient.eq(0).all()


def test_fp32_is_as_exact_as_the_dense_form():
    Z, M = tokens(2, 6, 40, 64)
    exact, g_exact = value_and_gradient(lambda Z: soft_trd_dense(Z, M, 10.0), Z)
    Z32, M32 = Z.detach().float().requires_grad_(), M.float()
    value, g = value_and_gradient(lambda Z: soft_trd(Z, M32, 10.0), Z32)
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (g - g_exact).norm() <= 1e-3 * g_exact.norm()  # signs of E near 0 may flip


def test_autocast_does_not_reach_it():
    Z, M = tokens(2, 4, 10, 32, dtype=torch.float32)
    plain = value_and_gradient(lambda Z: soft_trd(Z, M, 10.0), Z)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = value_and_gradient(lambda Z: soft_trd(Z, M, 10.0), Z)
    assert torch.equal(plain[0], mixed[0])
    assert torch.equal(plain[1], mixed[1])


def test_bf16_tokens_get_a_bf16_gradient_of_an_fp32_loss():
    Z, M = tokens(2, 4, 10, 32, dtype=torch.bfloat16)
    value, gradient = value_and_gradient(lambda Z: soft_trd(Z, M, 10.0), Z)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    reference = value_and_gradient(lambda Z: soft_trd(Z, M.float(), 10.0), Z.detach().float().requires_grad_())
    assert value == reference[0]
    assert torch.equal(gradient, reference[1].bfloat16())


def test_the_teacher_is_a_constant():
    Z, M = tokens(2, 3, 4, 5)
    M.requires_grad_()
    for loss in (
        lambda: soft_trd(Z, M, 10.0),
        lambda: soft_trd_dense(Z, M, 10.0),
        lambda: trd(Z, M),
        lambda: cosine(Z, M),
    ):
        loss().backward()
    assert M.grad is None


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, torch.Tensor):
                self.numel = max(self.numel, made.untyped_storage().nbytes() // made.element_size())
        return out


@pytest.mark.parametrize("loss", [lambda Z, M: soft_trd(Z, M, 10.0), trd], ids=["soft_trd", "trd"])
def test_no_square_matrix_is_stored(loss):
    Z, M = tokens(1, 24, 20, 4, dtype=torch.float32)
    N = 24 * 20
    with Largest() as seen:
        loss(Z, M).backward()
    assert seen.numel <= 2 * (2 * 20) * (4 * 20)  # two tiles, whatever N
    with Largest() as seen:
        soft_trd_dense(Z, M, 10.0).backward()
    assert seen.numel >= N * N


def test_a_zero_token_is_counted_and_keeps_a_finite_gradient():
    Z, M = tokens(2, 3, 4, 5, dtype=torch.float32)
    Z = Z.detach().clone()
    Z[0, 1, 2] = 0
    Z[1, 0, 3] = 1e-9
    assert zero_tokens(Z) == 2
    assert zero_tokens(M) == 0
    value, gradient = value_and_gradient(lambda Z: soft_trd(Z, M, 10.0), Z.requires_grad_())
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert gradient.abs().max() <= 1 / EPS


# --- from a row of params.yaml to a loss ----------------------------------------------------------------------------


def test_every_loss_of_the_parameters_exists():
    assert set(LOSSES) | {"zero", "joint"} == set(get_args(config.LossName))


def test_rows_reach_the_losses_with_their_numbers():
    Z, M = tokens(2, 3, 4, 5)
    row = config.Method(target="motion", loss="soft_trd", lam=0.5, tau=2.0, denominator="off_diagonal")
    assert LOSSES["soft_trd"](Z, M, row) == soft_trd(Z, M, 2.0, "off_diagonal")
    row = config.Method(target="tokens", loss="trd", lam=0.5, margin=0.3)
    assert LOSSES["trd"](Z, M, row) == trd(Z, M, 0.3)
    row = config.Method(target="tokens", loss="cosine", lam=0.5)
    assert LOSSES["cosine"](Z, M, row) == cosine(Z, M)


def test_fine_tuning_has_an_alignment_that_is_zero():
    align = alignment(config.Method(target="none", loss="zero"), nn.ModuleList())
    assert align([], None) == (0, 0)


def test_alignment_flattens_space_and_keeps_time():
    Y = torch.randn(2, 3, 4, 5, 6)
    M = torch.randn(2, 3, 4, 5, 6)
    row = config.Method(target="motion", loss="soft_trd", lam=0.5, tau=2.0)
    same = nn.ModuleList([nn.Identity()])
    expected = soft_trd(Y.reshape(2, 3, 20, 6), M.reshape(2, 3, 20, 6), 2.0)
    assert alignment(row, same)([Y], M) == (expected, 0)
    with pytest.raises(Problem, match="make the targets again"):
        alignment(row, same)([Y], M[:, :2])
    with pytest.raises(Problem, match="Projector"):
        alignment(row, nn.ModuleList())


def test_several_blocks_are_aligned_in_the_mean_and_zero_tokens_are_counted_per_clip():
    Ys, M = torch.randn(2, 2, 3, 4, 5, 6).unbind(), torch.randn(2, 3, 4, 5, 6)
    Ys[1][0, 0, 0, :3] = 0
    M[1, 2, 3, 4] = 0
    row = config.Method(target="motion", loss="soft_trd", lam=0.5, tau=2.0)
    each = [soft_trd(Y.reshape(2, 3, 20, 6), M.reshape(2, 3, 20, 6), 2.0) for Y in Ys]
    value, zeros = alignment(row, nn.ModuleList([nn.Identity(), nn.Identity()]))(list(Ys), M)
    assert value == torch.stack(each).mean() and zeros == 4 / 2


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.floats(0.2, 5.0))
def test_crepa(batch, frames, tokens_per_frame, tau):
    Z, M = tokens(batch, frames, tokens_per_frame, 6)
    total = 0.0
    for b, f, p in itertools.product(range(batch), range(frames), range(tokens_per_frame)):
        for k in (f - 1, f, f + 1):
            if 0 <= k < frames:
                cos = (Z[b, f, p] @ M[b, k, p]) / (Z[b, f, p].norm() * M[b, k, p].norm())
                total += math.exp(-abs(k - f) / tau) * cos.item()
    assert crepa(Z, M, tau).item() == pytest.approx(-total / (batch * frames * tokens_per_frame), abs=1e-12)
    assert not torch.autograd.functional.jacobian(lambda M: crepa(Z, M, tau), M).any(), "M is a constant"


def test_crepa_of_a_single_frame_is_repa():
    Z, M = tokens(2, 1, 5, 4)
    assert crepa(Z, M, 1.0) == cosine(Z, M)


def test_bad_input_is_refused():
    Z, M = tokens(2, 3, 4, 5)
    with pytest.raises(Problem, match="do not pair up"):
        soft_trd(Z, M[:1], 10.0)
    with pytest.raises(Problem, match="do not pair up"):
        cosine(Z, M[..., :3])
    with pytest.raises(Problem, match="allowed: all, off_diagonal"):
        soft_trd(Z, M, 10.0, "some")


def test_the_documents_name_tests_and_functions_that_exist():
    top = Path(__file__).parents[1]
    method = (top / "docs" / "method.md").read_text()
    tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", method)
    assert len(tests) >= 12
    for file, name in tests:
        assert f"def {name}(" in (top / file).read_text(), f"{file} has no {name}"
    for file, names in re.findall(r"`(\w+/\w+\.py)`((?:,? `\w+`)+)", method):
        for name in re.findall(r"\w+", names):
            source = (top / "src" / "moalign" / file).read_text()
            assert re.search(rf"(def|class) {name}\b", source), f"{file} has no {name}"
    assert re.findall(r"^\| A(\d+) \|", method, re.M) == [str(n) for n in range(1, 34)]
