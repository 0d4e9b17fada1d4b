"""The teacher wing: V against a plain forward, its files, M_psi and F_omega, RAFT's wiring, and the targets."""

import argparse
import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchvision.models import optical_flow
from torchvision.models.optical_flow.raft import CorrBlock

from moalign import config, manifest
from moalign.errors import Problem
from moalign.grid import Grid
from moalign.teacher import freeze, motion, raft, videomae
from moalign.teacher.motion import FlowDecoder, MotionHead
from moalign.teacher.targets import TARGETS
from moalign.teacher.videomae import VideoMAE, view

COG = Grid(49, 480, 720, (4, 8), 2, 160, 16, 2)
WAN = Grid(49, 480, 832, (4, 8), 2, 160, 16, 2)
MINIATURE = Grid(17, 64, 64, (4, 4), 2, 64, 8, 2)


def encoder(**changes):
    """A ViT-B row of params.yaml, or a smaller one."""
    row = {"weights": "none", "depth": 12, "width": 768, "heads": 12, "patch": 16, "tubelet": 2}
    row |= {"native": (16, 224, 224), "size": (160, 240)} | changes
    return config.Encoder(**row)


TINY = {"depth": 2, "width": 24, "heads": 3, "patch": 8, "native": (8, 32, 32), "size": (64, 64)}


def randomise(model):
    """Every weight random, norms and biases included, so that none can be forgotten unseen."""
    rng = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        p.data = base + torch.randn(p.shape, generator=rng) * (0.02 if p.ndim > 1 else 0.1)
    return model


# --- V --------------------------------------------------------------------------------------------------------------


def plain_forward(state, frames, depth, heads, patch, tubelet, positions):
    """VideoMAEv2's encoder written out in numpy, fp64, one patch, one head at a time."""
    w = {name: value.double().numpy() for name, value in state.items()}
    pixels = ((frames.double().numpy() + 1) / 2 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1, 1)
    )
    _, F, H, W = pixels.shape
    tokens = []
    for t in range(0, F, tubelet):
        for y in range(0, H, patch):
            for x in range(0, W, patch):
                cube = pixels[:, t : t + tubelet, y : y + patch, x : x + patch]
                kernel = w["patch_embed.proj.weight"]
                tokens.append((kernel * cube).sum((1, 2, 3, 4)) + w["patch_embed.proj.bias"])
    X = np.stack(tokens) + positions

    def norm(X, name):
        centred = X - X.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
        return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]

    for i in range(depth):
        b = f"blocks.{i}"
        q, k, v = np.split(norm(X, f"{b}.norm1") @ w[f"{b}.attn.qkv.weight"].T, 3, axis=-1)
        q, v = q + w[f"{b}.attn.q_bias"], v + w[f"{b}.attn.v_bias"]
        mixed = []
        for Q, K, V in zip(*(np.split(part, heads, axis=-1) for part in (q, k, v)), strict=True):
            A = np.exp(Q @ K.T / math.sqrt(Q.shape[-1]))
            mixed.append(A / A.sum(-1, keepdims=True) @ V)
        X = X + np.concatenate(mixed, -1) @ w[f"{b}.attn.proj.weight"].T + w[f"{b}.attn.proj.bias"]
        hidden = norm(X, f"{b}.norm2") @ w[f"{b}.mlp.fc1.weight"].T + w[f"{b}.mlp.fc1.bias"]
        hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2)))  # GELU
        X = X + hidden @ w[f"{b}.mlp.fc2.weight"].T + w[f"{b}.mlp.fc2.bias"]
    return X


def plain_table(positions, width):
    table = np.empty((positions, width))
    for p in range(positions):
        for c in range(width):
            angle = p / 10000 ** ((c - c % 2) / width)
            table[p, c] = math.cos(angle) if c % 2 else math.sin(angle)
    return table


def test_vit_b_equals_a_plain_forward():
    model = randomise(VideoMAE(encoder()))
    frames = torch.rand(1, 3, 4, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        S = model(frames)
        positions = model.positions((2, 2, 3)).double().numpy()
    assert S.shape == (1, 2, 2, 3, 768)
    expected = plain_forward(model.state_dict(), frames[0], 12, 12, 16, 2, positions)
    assert np.abs(S[0].flatten(0, 2).numpy() - expected).max() <= 2e-5 * np.abs(expected).max()


def test_names_and_shapes_are_those_of_the_released_file():
    with torch.device("meta"):
        model = VideoMAE(encoder())
        state = model.state_dict()
    assert {module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)} == {1e-6}
    block = {
        "norm1.weight": (768,),
        "norm1.bias": (768,),
        "attn.q_bias": (768,),
        "attn.v_bias": (768,),
        "attn.qkv.weight": (2304, 768),
        "attn.proj.weight": (768, 768),
        "attn.proj.bias": (768,),
        "norm2.weight": (768,),
        "norm2.bias": (768,),
        "mlp.fc1.weight": (3072, 768),
        "mlp.fc1.bias": (3072,),
        "mlp.fc2.weight": (768, 3072),
        "mlp.fc2.bias": (768,),
    }
    expected = {"patch_embed.proj.weight": (768, 3, 2, 16, 16), "patch_embed.proj.bias": (768,)}
    expected |= {f"blocks.{i}.{name}": shape for i in range(12) for name, shape in block.items()}
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


@pytest.mark.parametrize(("grid", "view"), [((24, 10, 15), (48, 160, 240)), ((24, 10, 17), (48, 160, 272))])
def test_paper_grids(grid, view):
    with torch.no_grad():
        S = VideoMAE(encoder(depth=1, width=48, heads=1))(torch.zeros(1, 3, *view))
    assert S.shape == (1, *grid, 48)


def test_native_positions_are_the_fixed_table_itself():
    model = VideoMAE(encoder(**TINY))
    expected = plain_table(4 * 4 * 4, 24)
    assert np.abs(model.positions((4, 4, 4)).numpy() - expected).max() < 1e-7
    assert torch.equal(model.positions((4, 4, 4)), model.table.flatten(0, 2))


def test_positions_are_resized_in_space_then_in_time():
    """The native 8 x 14 x 14 table on the paper's 24 x 10 x 15, against interpolation written out."""
    model = VideoMAE(encoder(depth=1, width=8, heads=1))
    table = torch.from_numpy(plain_table(8 * 14 * 14, 8)).view(8, 14, 14, 8)

    def cubic(old, new):
        """[new, old] weights of cubic convolution (a = -0.75), edges repeated, corners not aligned."""
        weights = torch.zeros(new, old, dtype=torch.float64)
        for i in range(new):
            centre = (i + 0.5) * old / new - 0.5
            for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
                d, a = abs(centre - j), -0.75
                w = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
                weights[i, min(max(j, 0), old - 1)] += w
        return weights

    def linear(old, new):
        weights = torch.zeros(new, old, dtype=torch.float64)
        for i in range(new):
            centre = max((i + 0.5) * old / new - 0.5, 0.0)
            j = int(centre)
            weights[i, j] += 1 - (centre - j)
            weights[i, min(j + 1, old - 1)] += centre - j
        return weights

    expected = torch.einsum("fghwc,yh,xw,tf->tyxc", table[:, None], cubic(14, 10), cubic(14, 15), linear(8, 24))
    assert (model.positions((24, 10, 15)).double() - expected.flatten(0, 2)).abs().max() < 1e-5


def test_autocast_does_not_reach_the_encoder():
    model = VideoMAE(encoder(**TINY))
    frames = torch.rand(1, 3, 4, 32, 32)
    with torch.no_grad():
        plain = model(frames)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = model(frames)
    assert mixed.dtype == torch.float32
    assert torch.equal(plain, mixed)


# --- what V sees ----------------------------------------------------------------------------------------------------


def test_view_drops_frame_zero_and_covers_what_motion_tokens_cover():
    x0 = torch.zeros(1, 3, 3, 480, 832)
    x0[:, :, 0] = 9.0  # must not be seen
    x0[..., 816:] = 7.0  # nor the columns that no motion token covers
    x0[:, :, 1, :, :3] = 1.0
    seen = view(x0, WAN)
    assert seen.shape == (1, 3, 2, 160, 272)
    assert seen.abs().max() < 1.5
    assert seen[0, 0, 0, 80, 0] > 0.9
    assert seen[0, 0, 0, 80, 2:].abs().max() < 0.1
    assert seen[0, 0, 1].abs().max() == 0


def test_view_keeps_clip_and_frame_order():
    x0 = torch.arange(2 * 5, dtype=torch.float32).view(2, 1, 5, 1, 1).expand(2, 3, 5, 480, 720) / 10
    seen = view(x0, COG)
    assert torch.allclose(seen, x0[:, :, 1:, :160, :240], atol=1e-6)


def test_view_is_antialiased():
    stripes = torch.ones(1, 3, 2, 480, 720)
    stripes[..., ::2] = -1.0
    assert view(stripes, COG).abs().max() < 0.2


def test_miniature_view_changes_no_pixel():
    x0 = torch.rand(1, 3, 17, 64, 64)
    assert torch.equal(view(x0, MINIATURE), x0[:, :, 1:])


# --- files of V -----------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(tmp_path):
    """A tiny encoder with random weights, and a row that points to a file that is not there yet."""
    path = tmp_path / "encoder.pth"
    row = encoder(**TINY, weights=str(path))
    return randomise(VideoMAE(row)), row, path


def assert_equal_weights(loaded, model):
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_save_and_load(stored):
    model, row, path = stored
    videomae.save(model, path)
    before = torch.random.get_rng_state()
    loaded = videomae.load(row)
    assert torch.equal(before, torch.random.get_rng_state())
    assert_equal_weights(loaded, model)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert set(torch.load(path)) == {"module"}


@pytest.mark.parametrize("nest", ["module", "model", None])
@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder."])
def test_released_layouts_load(stored, nest, prefix):
    model, row, path = stored
    state = {prefix + name: value for name, value in model.state_dict().items()}
    state |= {f"{prefix}{name}.weight": torch.zeros(710, 24) for name in ("head", "fc_norm", "norm")}
    torch.save({nest: state, "args": argparse.Namespace(lr=0.1), "epoch": 3} if nest else state, path)
    assert_equal_weights(videomae.load(row), model)


def refused(model, row, path, words, **changes):
    state = model.state_dict() | changes
    torch.save({"module": {name: value for name, value in state.items() if value is not None}}, path)
    with pytest.raises(Problem, match=words) as problem:
        videomae.load(row)
    assert str(path) in str(problem.value)
    assert "vit_b_k710_dl_from_giant.pth" in str(problem.value)
    assert "\n" not in str(problem.value)


def test_files_that_would_teach_something_else_are_refused(stored):
    model, row, path = stored
    weight = torch.zeros(2, 2)
    refused(model, row, path, "self-supervised", **{"decoder.blocks.0.norm1.weight": weight})
    refused(model, row, path, "self-supervised", mask_token=weight)
    refused(model, row, path, "self-supervised", **{"encoder.mask_token": weight})
    refused(model, row, path, "blocks.1.attn.q_bias is missing", **{"blocks.1.attn.q_bias": None})
    refused(model, row, path, "pos_embed belongs to no VideoMAEv2 encoder", pos_embed=weight)
    refused(model, row, path, "blocks.0.attn.v_bias is all zero", **{"blocks.0.attn.v_bias": torch.zeros(24)})
    refused(model, row, path, r"mlp.fc1.bias is \[7\], not \[96\]", **{"blocks.0.mlp.fc1.bias": torch.zeros(7)})
    refused(model, row, path, "no patch embedding", **{"patch_embed.proj.weight": None})
    for size, value in (("width", 48), ("depth", 3), ("patch", 16), ("tubelet", 4)):
        other = VideoMAE(encoder(**(TINY | {size: value})))
        refused(other, row, path, f"its ViT has {size} {value}, and encoder.{size} is {TINY.get(size, 2)}")


def test_what_is_no_checkpoint_is_refused(stored):
    _, row, path = stored
    with pytest.raises(Problem, match=r"no such file; .* vit_b_k710_dl_from_giant.pth .*OpenGVLab/VideoMAE2"):
        videomae.load(row)
    for content in (b"", b"not weights at all"):
        path.write_bytes(content)
        with pytest.raises(Problem, match="not a checkpoint of plain tensors"):
            videomae.load(row)
    torch.save([1, 2], path)
    with pytest.raises(Problem, match="no state dict"):
        videomae.load(row)


@pytest.fixture
def transformers_model():
    """transformers' VideoMAE of the tiny size, every weight random; it takes no size but its own."""
    from transformers import VideoMAEConfig, VideoMAEModel

    sizes = {"image_size": 32, "patch_size": 8, "num_frames": 8, "tubelet_size": 2, "hidden_size": 24}
    layers = {"num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "layer_norm_eps": 1e-6}
    return randomise(VideoMAEModel(VideoMAEConfig(**sizes, **layers, use_mean_pooling=True)).eval())


@pytest.mark.parametrize("names", ["as saved", "as of transformers 4"])
def test_a_transformers_folder_gives_transformers_features(transformers_model, tmp_path, names):
    transformers_model.save_pretrained(tmp_path)
    if names == "as of transformers 4":
        state = {}
        for name, value in transformers_model.state_dict().items():
            name = re.sub(r"\.(query|value)\.bias", lambda found: f".{found[1][0]}_bias", name)
            state[f"videomae.{name}"] = value.contiguous()
        save_file(state | {"classifier.weight": torch.zeros(3, 24)}, tmp_path / "model.safetensors")
    model = videomae.load(encoder(**TINY, weights=str(tmp_path)))
    frames = torch.rand(1, 3, 8, 32, 32) * 2 - 1
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (videomae.MEAN, videomae.STD))
    with torch.no_grad():
        theirs = transformers_model((((frames + 1) / 2 - mean) / std).transpose(1, 2)).last_hidden_state
        assert torch.allclose(model(frames).flatten(1, 3), theirs, atol=1e-5)


def test_other_folders_are_refused(transformers_model, tmp_path):
    row = encoder(**TINY, weights=str(tmp_path))
    with pytest.raises(Problem, match=r"config\.json: no such file"):
        videomae.load(row)
    transformers_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vivit"}))
    with pytest.raises(Problem, match="of type 'vivit', not videomae"):
        videomae.load(row)
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(Problem, match="not a readable"):
        videomae.load(row)


# --- M_psi and F_omega ----------------------------------------------------------------------------------------------


def test_heads_at_the_papers_sizes():
    with torch.device("meta"):
        head, decoder = MotionHead(768, (256, 64)), FlowDecoder(64, (64, 32, 16), (128, 192))
        M = head(torch.empty(2, 24, 10, 15, 768))
        O_hat = decoder(M)
        inner = decoder.layers(M.permute(0, 4, 1, 2, 3))
    assert M.shape == (2, 24, 10, 15, 64)
    assert O_hat.shape == (2, 23, 2, 128, 192)
    assert inner.shape == (2, 2, 23, 40, 60)  # 10 x 15, twice doubled
    kernels = {name: tuple(p.shape) for m in (head, decoder) for name, p in m.named_parameters() if p.ndim > 1}
    assert kernels == {
        "layers.time.weight": (256, 768, 3, 1, 1),
        "layers.point.weight": (64, 256, 1, 1, 1),
        "layers.pairs.weight": (64, 64, 2, 3, 3),
        "layers.up1.weight": (64, 32, 1, 4, 4),
        "layers.up2.weight": (32, 16, 1, 4, 4),
        "layers.flow.weight": (2, 16, 3, 3, 3),
    }


def test_motion_head_written_out():
    torch.manual_seed(0)
    head = MotionHead(6, (5, 3)).double()
    S = torch.randn(2, 4, 2, 3, 6, dtype=torch.float64)
    p = dict(head.named_parameters())

    def silu(x):
        return x / (1 + torch.exp(-x))

    padded = torch.cat([torch.zeros_like(S[:, :1]), S, torch.zeros_like(S[:, :1])], dim=1)
    hidden = sum(padded[:, k : k + 4] @ p["layers.time.weight"][:, :, k, 0, 0].T for k in range(3))
    hidden = silu(hidden + p["layers.time.bias"])
    M = silu(hidden @ p["layers.point.weight"][:, :, 0, 0, 0].T + p["layers.point.bias"])
    assert torch.allclose(head(S), M, rtol=1e-12, atol=1e-14)
    assert head(S).min() >= -0.2785  # the last SiLU is part of M (A14)


def test_flow_decoder_can_give_any_sign_and_a_transition_reads_its_own_two_times():
    torch.manual_seed(0)
    decoder = FlowDecoder(3, (4, 4, 4), (16, 24))
    M = torch.randn(1, 9, 2, 3, 3, requires_grad=True)
    O_hat = decoder(M)
    assert O_hat.shape == (1, 8, 2, 16, 24)
    assert O_hat.min() < 0 < O_hat.max()
    O_hat[0, 4].square().sum().backward()
    reached = M.grad[0].abs().sum((1, 2, 3)) > 0
    assert reached.tolist() == [3 <= k <= 6 for k in range(9)]  # times 4, 5, and one more each way by the last kernel


def test_both_heads_survive_their_file(tmp_path):
    head, decoder = MotionHead(6, (5, 3)), FlowDecoder(3, (4, 4, 4), (16, 24))
    path = tmp_path / "manifest.jsonl"
    pin = tmp_path / "pin.yaml"
    pin.write_text("stage: teacher\nrevision: 1\n")
    with manifest.making(path, manifest.Weights, pin=pin) as made:
        motion.save(tmp_path / "teacher.safetensors", head, decoder)
        made.file("teacher.safetensors")
        made.rows.append(manifest.Weights("teacher", "teacher.safetensors", 7))
    loaded = motion.load(manifest.read(path, manifest.Weights))
    assert loaded.width == 3
    assert_equal_weights(loaded, head)
    assert not any(p.requires_grad for p in loaded.parameters())
    (tmp_path / "teacher.safetensors").write_bytes(b"torn")
    with pytest.raises(Problem, match="run stage 1 again"):
        motion.load(manifest.read(path, manifest.Weights))


# --- O --------------------------------------------------------------------------------------------------------------


def flow_row(**changes):
    row = {"weights": "none", "model": "raft_small", "size": (128, 192), "updates": 2, "reading": "stride2"}
    return config.Flow(**(row | changes))


FLOW_GRID = Grid(9, 256, 384, (4, 8), 2, 256, 16, 2)  # 4 token times, 3 transitions


def test_the_23_transitions_of_the_paper():
    stride2, adjacent, summed = (raft.transitions(reading, 23, 2) for reading in ("stride2", "adjacent", "sum"))
    assert [len(steps) for steps in (stride2, adjacent, summed)] == [23, 23, 23]
    # token k covers frames 2k, 2k+1 of the 48 that are left
    assert stride2[0] == [(0, 2)]
    assert stride2[-1] == [(44, 46)]
    assert adjacent[0] == [(1, 2)]
    assert adjacent[-1] == [(45, 46)]
    assert summed[0] == [(0, 1), (1, 2)]
    assert summed[-1] == [(44, 45), (45, 46)]
    with pytest.raises(Problem, match="allowed: stride2"):
        raft.transitions("every", 23, 2)


@pytest.mark.parametrize(
    ("model", "reading"), [("raft_small", "sum"), ("raft_small", "stride2"), ("raft_large", "stride2")]
)
def test_shared_features_give_the_flow_of_pairs(model, reading):
    """Against torchvision's own forward, pair by pair; and each frame is encoded once."""
    torch.manual_seed(0)
    network = freeze(getattr(optical_flow, model)(weights=None))
    row = flow_row(model=model, reading=reading)
    x0 = torch.rand(1, 3, 9, 256, 384) * 2 - 1
    encoded = []
    hook = network.feature_encoder.register_forward_hook(lambda module, given, out: encoded.append(len(given[0])))
    O = raft.flow(network, x0, FLOW_GRID, row)
    hook.remove()
    steps = raft.transitions(reading, 3, 2)
    assert O.shape == (1, 3, 2, 128, 192)
    assert encoded == [len({frame for step in steps for pair in step for frame in pair})]
    frames = view(x0, FLOW_GRID, (128, 192))[0].transpose(0, 1)
    for k, step in enumerate(steps):
        expected = sum(network(frames[a : a + 1], frames[b : b + 1], num_flow_updates=2)[-1] for a, b in step)
        assert torch.allclose(O[:, k], expected, atol=1e-5 * expected.abs().max().item() + 1e-5)


def test_flow_on_is_torchvisions():
    torch.manual_seed(0)
    network = freeze(optical_flow.raft_small(weights=None))
    frames = torch.rand(3, 3, 128, 136) * 2 - 1
    expected = network(frames[:-1], frames[1:], num_flow_updates=2)[-1]
    assert torch.allclose(raft.flow_on(network, frames, 2), expected, atol=1e-5)


class ByMatching(nn.Module):
    """RAFT without learning: features are the 8 x 8 pixels of a cell, and the update walks to the best match that
    torchvision's correlation volume shows. Exact for motion by whole cells."""

    def __init__(self):
        super().__init__()
        self.corr_block = CorrBlock(num_levels=1, radius=4)
        self.mask_predictor = None
        self.update_block = self.Walk()

    def feature_encoder(self, frames):
        cells = nn.functional.pixel_unshuffle(frames, 8)
        cells = cells - cells.mean(1, keepdim=True)
        return 100 * cells / cells.norm(dim=1, keepdim=True)

    def context_encoder(self, frames):
        return nn.functional.avg_pool2d(frames, 8)[:, :2]

    class Walk(nn.Module):
        hidden_state_size = 1

        def forward(self, hidden, context, correlation, flow):
            best = correlation.argmax(1)  # of 9 x 9 displacements, x slow and y fast
            return hidden, torch.stack([best // 9 - 4, best % 9 - 4], dim=1).float()


@pytest.mark.parametrize(("right", "down"), [(16, 0), (0, 16), (-16, 16)])
@pytest.mark.parametrize(("reading", "share"), [("stride2", 1.0), ("adjacent", 0.5), ("sum", 1.0)])
def test_flow_is_in_pixels_of_its_size_x_to_the_right_y_down(right, down, reading, share):
    """A picture that moves 16 px per frame at 256 x 384 moves 8 px at 128 x 192, so 16 px from token to token."""
    canvas = torch.rand(3, 600, 800, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shown = [canvas[:, 150 - t * down : 406 - t * down, 200 - t * right : 584 - t * right] for t in range(9)]
    x0 = torch.stack(shown, dim=1)[None]
    O = raft.flow(ByMatching(), x0, FLOW_GRID, flow_row(reading=reading, updates=1))
    middle = O[0, :, :, 40:-40, 40:-40]
    assert middle[:, 0].sub(right * share).abs().max() < 1e-4
    assert middle[:, 1].sub(down * share).abs().max() < 1e-4


@pytest.mark.parametrize("size", [(128, 190), (132, 192), (120, 192)])
def test_sizes_that_do_not_suit_raft_are_refused(size):
    network = freeze(optical_flow.raft_small(weights=None))
    with pytest.raises(Problem, match="multiples of 8, at least 128"):
        raft.flow_on(network, torch.zeros(2, 3, *size))


def test_raft_loads_its_state_dict_and_nothing_else(tmp_path):
    path = tmp_path / "raft.pth"
    row = flow_row(weights=str(path))
    with pytest.raises(Problem, match=r"no such file; .*raft_small_C_T_V2-01064c6d\.pth"):
        raft.load(row)
    network = optical_flow.raft_small(weights=None)
    torch.save(network.state_dict(), path)
    loaded = raft.load(row)
    assert_equal_weights(loaded, network)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(Problem, match="not those of a raft_large"):
        raft.load(flow_row(weights=str(path), model="raft_large"))
    path.write_bytes(b"torn")
    with pytest.raises(Problem, match="not a checkpoint of plain tensors"):
        raft.load(row)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-600.0, 600.0, width=32), min_size=4, max_size=48))
def test_packing_errs_by_less_than_half_a_step_and_saturates_beyond(values):
    width = len(values) // 4
    O = torch.tensor(values[: 4 * width]).view(1, 2, 2, width)
    stored = raft.pack(O)
    assert stored.dtype == torch.uint8 and stored.ndim == 1
    back = raft.unpack(stored, (2, width))
    assert back.shape == O.shape
    fits = (O >= -512 - 1 / 128) & (O < 512 - 1 / 128)
    assert ((back - O).abs()[fits] <= 1 / 128).all()
    assert back[O > 512].eq(32767 / 64).all()
    assert back[O < -512.1].eq(-512).all()
    assert raft.outside(O) <= (~fits).sum()
    assert raft.outside(O) >= (O.abs() > 512.1).sum()
    assert torch.equal(raft.pack(back), stored)


def test_what_is_no_number_is_counted_and_stored_as_rest():
    O = torch.tensor([float("nan"), float("inf"), 1.0, -0.5]).view(1, 2, 1, 2)
    assert raft.outside(O) == 2
    assert raft.unpack(raft.pack(O), (1, 2)).flatten().tolist() == [0, 32767 / 64, 1.0, -0.5]


def test_smooth_flow_is_stored_small_and_another_size_is_refused():
    y, x = torch.meshgrid(torch.linspace(0, 3, 128), torch.linspace(0, 3, 192), indexing="ij")
    O = torch.stack([x.sin() * 9, y.cos() * 4]).expand(23, -1, -1, -1)
    stored = raft.pack(O)
    assert len(stored) < O.numel() * 2 / 4
    assert (raft.unpack(stored, (128, 192)) - O).abs().max() <= 1 / 128
    with pytest.raises(Problem, match=r"flow.size: a stored flow is not of 128 x 190 .*; run `flow` again"):
        raft.unpack(stored, (128, 190))
    with pytest.raises(Problem, match=r"run `flow` again"):
        raft.unpack(stored[:100], (128, 192))


# --- targets --------------------------------------------------------------------------------------------------------


def test_targets_are_v_and_m_of_the_view():
    torch.manual_seed(0)
    model = VideoMAE(encoder(**(TINY | {"native": (16, 64, 64)})))
    head = MotionHead(24, (8, 5))
    x0 = torch.rand(2, 3, 17, 64, 64) * 2 - 1
    assert TARGETS["none"] is None
    tokens = TARGETS["tokens"](model, None, MINIATURE)
    movement = TARGETS["motion"](model, head, MINIATURE)
    assert (tokens.width, movement.width) == (24, 5)
    S, M = tokens(x0), movement(x0)
    assert S.shape == (2, 8, 8, 8, 24)
    assert M.shape == (2, 8, 8, 8, 5)
    assert torch.equal(S, model(view(x0, MINIATURE)))
    assert torch.equal(M, head(S))
    assert set(TARGETS) == {"none", "tokens", "motion"}


def test_no_teacher_weight_has_a_gradient():
    model, head = VideoMAE(encoder(**TINY)), MotionHead(24, (8, 5))
    target = TARGETS["motion"](model, head, MINIATURE)
    x0 = torch.rand(1, 3, 17, 64, 64, requires_grad=True)
    M = target(x0)
    assert not M.requires_grad
    for module in (model, head):
        assert not module.training
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
