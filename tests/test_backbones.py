"""One contract over both families of backbones, on small random models of the stock classes in the hub's layout.

Each point is checked against the stock diffusers pipeline or against the equation, never against our own code.
"""

import gc
import itertools
import json
import os
import shutil
import subprocess
import weakref
from pathlib import Path

import pytest
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Generator, distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import set_checkpoint_early_stop

from moalign import backbones, config
from moalign.align.losses import soft_trd
from moalign.align.projector import Projector
from moalign.backbones import CogVideoX, TextToVideo, Wan, loading, miniature
from moalign.backbones.base import ATTENTION
from moalign.backbones.loading import Parts
from moalign.errors import Problem
from moalign.interfaces import Noised

FAMILIES = ("cogvideox", "wan")
C = miniature.LATENT_CHANNELS
FRAMES = {"cogvideox": 5, "wan": 3}  # latents of 9 frames; the small VAE of CogVideoX halves time once
PARAMS = config.load(Path(__file__).parents[1] / "params.yaml", scale="miniature")
PROMPTS = ["a red ball falls", "Tom &amp; Jerry\u2019s   blue box", "", "a very long caption " * 9]
BOTH = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Random models; the Wan VAE's latent statistics are made uneven, so that forgetting them shows."""
    top = tmp_path_factory.mktemp("models")
    made = {family: miniature.build(top / family, family, seed=0) for family in FAMILIES}
    vae = made["wan"] / "vae" / "config.json"
    edited = json.loads(vae.read_text()) | {
        "latents_mean": torch.linspace(-0.5, 0.6, C).tolist(),
        "latents_std": torch.linspace(0.5, 2.0, C).tolist(),
    }
    vae.write_text(json.dumps(edited))
    return made


def row_of(family: str, folder: Path, **changes) -> config.Backbone:
    """The miniature's row with clips of 9 x 32 x 32, so 8 x 8 latents and 4 x 4 tokens in FRAMES times."""
    return PARAMS.backbones[family].model_copy(
        update={"weights": str(folder), "frames": 9, "size": (32, 32), **changes}
    )


@pytest.fixture
def fresh(folders):
    """Builds a backbone of its own for a test that changes it."""

    def load(family: str, **options) -> TextToVideo:
        return backbones.load(row_of(family, folders[family]), **options)

    return load


@pytest.fixture(scope="session")
def shared(folders) -> dict[str, TextToVideo]:
    """Backbones that no test changes."""
    return {family: backbones.load(row_of(family, folders[family])) for family in FAMILIES}


def clips(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, 9, 32, 32, generator=Generator().manual_seed(seed)) * 2 - 1


def latents(count: int, family: str = "cogvideox", seed: int = 0) -> torch.Tensor:
    return torch.randn(count, C, FRAMES[family], 8, 8, generator=Generator().manual_seed(seed))


def step(backbone: TextToVideo, layer: int | None, count: int = 2) -> tuple[Noised, torch.Tensor, torch.Tensor | None]:
    """One forward pass on fixed inputs: what was asked, the prediction, Y."""
    noised = backbone.noise(latents(count, backbone.row.family), torch.arange(count) + 5)
    prompt = torch.randn(count, miniature.TEXT_TOKENS, 64, generator=Generator().manual_seed(1))
    prediction, Ys = backbone.predict(noised, prompt, () if layer is None else (layer,))
    return noised, prediction, *(Ys or [None])


def gradients(backbone: TextToVideo) -> dict[str, torch.Tensor]:
    return {
        name: weight.grad.clone() for name, weight in backbone.transformer.named_parameters() if weight.grad is not None
    }


# --- shapes and layout ----------------------------------------------------------------------------------------------


@BOTH
def test_shapes_of_the_five_calls(shared, family):
    backbone = shared[family]
    x0 = clips(2)
    z0 = backbone.encode(x0)
    assert z0.shape == (2, C, *backbone.grid.latents) and z0.dtype == torch.float32
    prompt = backbone.embed(["a red ball falls", "a box"])
    assert prompt.shape == (2, miniature.TEXT_TOKENS, 64)
    noised = backbone.noise(z0, torch.tensor([3, 4]))
    assert noised.t.shape == (2,) and noised.z_t.shape == noised.target.shape
    prediction, (Y,) = backbone.predict(noised, prompt, (4,))
    assert prediction.shape == noised.target.shape
    assert (
        Y.shape
        == (2, *backbone.grid.tokens, backbone.row.width)
        == (2, FRAMES[family], 4, 4, {"cogvideox": 128, "wan": 96}[family])
    )
    alone, nothing = backbone.predict(noised, prompt)
    assert nothing == [] and torch.equal(alone, prediction)
    first, last = backbone.ends
    assert first.weight.shape[:2] == (backbone.row.width, C) and last.weight.shape == (4 * C, backbone.row.width)


@BOTH
def test_encode_is_the_stock_posterior(shared, folders, family):
    backbone, x0 = shared[family], clips(2)
    with torch.no_grad():
        stock = backbone.vae_class.from_pretrained(folders[family], subfolder="vae").encode(x0).latent_dist
    assert torch.equal(backbone.encode(x0), stock.mean)


@BOTH
def test_encode_is_causal_in_time(folders, family):
    """The last frame reaches the last latent and leaves the first alone.

    CogVideoX normalises over chunks of 8 frames (the first has 9), so the last frame is taken from a second chunk.
    """
    backbone = backbones.load(row_of(family, folders[family], frames=17), parts=("vae",))
    x0 = clips(1).repeat(1, 1, 2, 1, 1)[:, :, :17]
    later = x0.clone()
    later[:, :, 16] = -later[:, :, 16]
    one, two = backbone.encode(x0), backbone.encode(later)
    assert one.shape == (1, C, *backbone.grid.latents)
    assert torch.equal(one[:, :, 0], two[:, :, 0])
    assert not torch.allclose(one[:, :, -1], two[:, :, -1])


@BOTH
def test_encode_of_a_batch_is_clip_by_clip(shared, family):
    x0 = clips(2)
    assert torch.equal(shared[family].encode(x0)[1:], shared[family].encode(x0[1:]))


def mute(backbone: TextToVideo) -> None:
    """Make every block the identity: its gates (and Wan's ungated cross-attention) become zero."""
    if isinstance(backbone, CogVideoX):
        silent = [
            norm.linear for block in backbone.transformer.transformer_blocks for norm in (block.norm1, block.norm2)
        ]
    else:
        silent = [block.attn2.to_out[0] for block in backbone.transformer.blocks]
        silent.append(backbone.transformer.condition_embedder.time_proj)
        for block in backbone.transformer.blocks:
            torch.nn.init.zeros_(block.scale_shift_table)
    for layer in silent:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


@BOTH
def test_Y_is_the_video_stream_in_its_own_order(fresh, family):
    """With identity blocks, one patch of z_t reaches one token of Y, at its own frame, row and column; text none."""
    backbone = fresh(family, parts=("transformer",))
    mute(backbone)
    noised, _, Y = step(backbone, layer=3, count=1)
    frame, row, column = 2, 1, 3
    patch = (slice(row * 2, row * 2 + 2), slice(column * 2, column * 2 + 2))
    touched = noised.z_t.clone()
    touched[(0, frame, slice(None), *patch) if family == "cogvideox" else (0, slice(None), frame, *patch)] += 1
    prompt = torch.zeros(1, miniature.TEXT_TOKENS, 64)
    _, (Y_touched,) = backbone.predict(Noised(touched, noised.t, noised.target), prompt, (3,))
    changed = (Y - Y_touched).abs().amax(-1)[0].nonzero().tolist()
    assert changed == [[frame, row, column]]


# --- the noise ------------------------------------------------------------------------------------------------------


def test_v_prediction_is_what_the_stock_scheduler_calls_velocity(shared, folders):
    backbone, z0, streams = shared["cogvideox"], latents(3), torch.tensor([1, 2, 3])
    noised = backbone.noise(z0, streams)
    scheduler = CogVideoXDDIMScheduler.from_pretrained(folders["cogvideox"], subfolder="scheduler")
    scaled = (z0 * backbone.vae.config.scaling_factor).transpose(1, 2)
    eps = torch.empty_like(scaled)
    for index, stream in enumerate(streams.tolist()):
        rng = Generator().manual_seed(stream)
        assert noised.t[index] == torch.randint(1000, (), generator=rng)
        eps[index] = torch.randn(z0.shape[1:], generator=rng).transpose(0, 1)
    assert torch.allclose(noised.z_t, scheduler.add_noise(scaled, eps, noised.t), atol=1e-6)
    assert torch.allclose(noised.target, scheduler.get_velocity(scaled, eps, noised.t), atol=1e-6)


def test_mse_on_v_is_the_stock_trainers_weighted_loss(shared):
    """1 / (1 - abar) (z0_hat - z0)^2 with z0_hat = sqrt(abar) z_t - sqrt(1 - abar) v_hat is (v_hat - v)^2."""
    backbone, z0 = shared["cogvideox"], latents(4)
    noised = backbone.noise(z0, torch.tensor([11, 12, 13, 14]))
    v_hat = noised.target + torch.randn_like(noised.target)
    abar = backbone.abar[noised.t].view(-1, 1, 1, 1, 1)
    z0_hat = abar.sqrt() * noised.z_t.double() - (1 - abar).sqrt() * v_hat.double()
    scaled = (z0 * backbone.scale).transpose(1, 2).double()
    weighted = ((z0_hat - scaled).square() / (1 - abar)).mean()
    assert torch.isclose(weighted, (v_hat - noised.target).double().square().mean(), rtol=1e-5)


def test_terminal_snr_is_zero(shared):
    backbone = shared["cogvideox"]
    assert backbone.abar.dtype == torch.float64 and backbone.abar[999] == 0
    assert (backbone.abar.diff() < 0).all()
    stream = next(s for s in range(20000) if torch.randint(1000, (), generator=Generator().manual_seed(s)) == 999)
    z0 = latents(1)
    noised, again = backbone.noise(z0, torch.tensor([stream])), backbone.noise(z0 + 7, torch.tensor([stream]))
    assert noised.t.tolist() == [999]
    assert torch.equal(noised.z_t, again.z_t), "pure noise, whatever the clip"
    assert torch.equal(noised.target, -(z0 * backbone.scale).transpose(1, 2))


def test_flow_matching_target_on_normalised_latents(shared, folders):
    backbone, z0 = shared["wan"], latents(3, "wan")
    noised = backbone.noise(z0, torch.tensor([1, 2, 3]))
    stats = json.loads((folders["wan"] / "vae" / "config.json").read_text())
    mean, std = (torch.tensor(stats[key]).view(1, C, 1, 1, 1) for key in ("latents_mean", "latents_std"))
    s = (noised.t / 1000).view(-1, 1, 1, 1, 1)
    assert torch.allclose(noised.z_t - s * noised.target, (z0 - mean) / std, atol=1e-5)
    eps = noised.z_t + (1 - s) * noised.target
    expected = Generator().manual_seed(2)
    sigma = torch.randn((), generator=expected).sigmoid()
    assert torch.allclose(eps[1], torch.randn(z0.shape[1:], generator=expected), atol=1e-5)
    assert torch.isclose(s[1].squeeze(), 2 * sigma / (1 + sigma)), "shift 2"
    assert (noised.t != noised.t.round()).all(), "timesteps are not rounded"


@BOTH
def test_distribution_of_the_noise_level(shared, family):
    """CogVideoX: uniform over 0..999. Wan: the logit, less log(shift), is standard normal."""
    streams = torch.arange(3000) * 7919
    t = torch.cat([shared[family].noise(torch.zeros(1, C, FRAMES[family], 8, 8), s[None]).t for s in streams]).double()
    if family == "cogvideox":
        assert 0 <= t.min() < 5 and 994 < t.max() <= 999 and abs(t.mean() - 499.5) < 20 and abs(t.std() - 288.7) < 10
    else:
        logit = torch.logit(t / 1000) - torch.log(torch.tensor(2.0))
        assert abs(logit.mean()) < 0.06 and abs(logit.std() - 1) < 0.05


@BOTH
def test_noise_of_a_clip_does_not_know_its_batch(shared, family):
    backbone, z0, streams = shared[family], latents(5, family), torch.tensor([9, -3, 2**62, 7, 8])
    whole = backbone.noise(z0, streams)
    parts = [backbone.noise(z0[piece], streams[piece]) for piece in ([0, 1, 2], [3, 4])]
    turned = backbone.noise(z0.flip(0), streams.flip(0))
    for name in ("z_t", "t", "target"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(part, name) for part in parts]))
        assert torch.equal(getattr(whole, name), getattr(turned, name).flip(0))
    assert len(set(whole.t.tolist())) == 5
    same = backbone.noise(z0[:1].expand(2, -1, -1, -1, -1), torch.tensor([1, 2]))
    assert not torch.allclose(same.target[0], same.target[1])


# --- the tap --------------------------------------------------------------------------------------------------------


def training_step(backbone: TextToVideo, layer: int = 4) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    noised, prediction, Y = step(backbone, layer)
    loss = (prediction - noised.target).square().mean() + 0.5 * Y.square().mean()
    loss.backward()
    return Y.detach(), gradients(backbone)


class Attentions(TorchDispatchMode):
    """Counts the calls of the attention kernel."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func in ATTENTION
        return func(*args, **(kwargs or {}))


@BOTH
@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context")
@pytest.mark.parametrize("kind, again", [("none", 0), ("keep_attention", 0), ("full", 1)])
def test_what_checkpointing_computes_again(fresh, family, kind, again):
    """Attention runs once more on the way back under `full` alone; activations are let go under both."""
    backbone = fresh(family, parts=("transformer",))
    per_pass = 6 * {"cogvideox": 1, "wan": 2}[family]
    training_step(backbone)
    plain = gradients(backbone)
    backbone.transformer.zero_grad()
    backbone.checkpoint(kind)
    saved = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x)
    with Attentions() as mode, hooks:
        training_step(backbone)
    assert mode.calls == per_pass * (1 + again)
    assert all(torch.equal(plain[name], gradient) for name, gradient in gradients(backbone).items())
    assert backbone.transformer.is_gradient_checkpointing == (kind != "none")
    few = 200 if family == "cogvideox" else 250
    assert (len(saved) < few) == (kind != "none"), len(saved)


@BOTH
def test_several_layers_at_once(fresh, family):
    backbone = fresh(family, parts=("transformer",))
    alone = {layer: step(backbone, layer)[2] for layer in (2, 5)}
    noised, prompt = (
        backbone.noise(latents(2, family), torch.arange(2) + 5),
        torch.randn(2, miniature.TEXT_TOKENS, 64, generator=Generator().manual_seed(1)),
    )
    _, Ys = backbone.predict(noised, prompt, (5, 2))
    assert torch.equal(Ys[0], alone[5]) and torch.equal(Ys[1], alone[2])


@BOTH
def test_checkpointing_changes_neither_Y_nor_gradients(fresh, family):
    backbone = fresh(family, parts=("transformer",))
    calls = []
    getattr(backbone.transformer, backbone.block_list)[3].register_forward_hook(lambda *_: calls.append(1))
    Y, plain = training_step(backbone)
    assert len(calls) == 1
    backbone.transformer.zero_grad()
    backbone.checkpoint("full")
    with set_checkpoint_early_stop(False):  # the whole block runs again, its hooks included
        Y_again, recomputed = training_step(backbone)
    assert len(calls) == 3, "the hooks fired again during backward"
    assert torch.equal(Y, Y_again)
    assert plain.keys() == recomputed.keys() == dict(backbone.transformer.named_parameters()).keys()
    for name, gradient in plain.items():
        assert torch.equal(gradient, recomputed[name]), name


@BOTH
@pytest.mark.parametrize("checkpointing", [False, True])
def test_no_tensor_outlives_its_step(fresh, family, checkpointing):
    backbone = fresh(family, parts=("transformer",))
    if checkpointing:
        backbone.checkpoint("full")
    _, prediction, Y = step(backbone, layer=2)
    (prediction.mean() + Y.mean()).backward()
    held = weakref.ref(Y._base if Y._base is not None else Y)
    assert not backbone.tap.outputs and not backbone.tap.wanted
    del prediction, Y
    gc.collect()
    assert held() is None


@BOTH
def test_a_failed_forward_leaves_the_tap_idle(fresh, family):
    backbone = fresh(family, parts=("transformer",))
    noised = backbone.noise(latents(1, family), torch.tensor([1]))
    with pytest.raises(RuntimeError):
        backbone.predict(noised, torch.zeros(1, miniature.TEXT_TOKENS, 63), (2,))
    assert not backbone.tap.outputs and not backbone.tap.wanted


@BOTH
@pytest.mark.parametrize(("layer", "checkpointing"), [(1, False), (4, False), (4, True), (6, True)])
def test_the_alignment_gradient_reaches_blocks_up_to_layer_and_no_further(fresh, family, layer, checkpointing):
    backbone = fresh(family, parts=("transformer",))
    if checkpointing:
        backbone.checkpoint("full")
    step(backbone, layer)[2].square().mean().backward()
    reached = gradients(backbone)
    for number in range(1, 7):
        block = {name: g for name, g in reached.items() if name.startswith(f"{backbone.block_list}.{number - 1}.")}
        if number > layer:
            assert not block
        else:
            assert sum(g.abs().sum() for g in block.values()) > 0
    assert not any(name.startswith(("proj_out", "norm_out", "norm_final")) for name in reached)


@BOTH
def test_wrapped_by_ddp(fresh, family, tmp_path):
    plain = fresh(family, parts=("transformer",))
    Y, expected = training_step(plain)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        backbone = fresh(family, parts=("transformer",))
        backbone.checkpoint("full")
        backbone.module = DistributedDataParallel(backbone.module)
        Y_wrapped, found = training_step(backbone)
    finally:
        distributed.destroy_process_group()
    assert torch.equal(Y, Y_wrapped)
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    backbone.save(tmp_path / "saved")
    assert backbone.transformer_class.from_pretrained(tmp_path / "saved").config.num_layers == 6


def test_compiled(folders):
    """A compiled model is tapped too, also where it was compiled without a layer before."""
    row = row_of("wan", folders["wan"], blocks=2)
    transformer = WanTransformer3DModel.from_config(miniature.pipeline("wan").transformer.config, num_layers=2)
    stats = {"latents_mean": [0.0] * C, "latents_std": [1.0] * C}
    backbone = Wan(row, backbones.own_grid(row), Parts(transformer, None, None, None, stats, {}))
    plain = {layer: step(backbone, layer)[1:] for layer in (None, 1, 2)}
    backbone.module = torch.compile(backbone.module, backend="eager")
    for layer in (None, 2, 1, 2):
        prediction, Y = step(backbone, layer)[1:]
        assert torch.equal(prediction, plain[layer][0])
        assert layer is None or torch.equal(Y, plain[layer][1])


# --- prompts --------------------------------------------------------------------------------------------------------


def stock_prompts(folder: Path, family: str, prompts: list[str]) -> torch.Tensor:
    pipeline = {"cogvideox": CogVideoXPipeline, "wan": WanPipeline}[family].from_pretrained(folder)
    with torch.no_grad():
        return pipeline.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=miniature.TEXT_TOKENS
        )[0]


@BOTH
def test_prompts_as_the_stock_pipeline_feeds_them(shared, folders, family):
    assert torch.equal(shared[family].embed(PROMPTS), stock_prompts(folders[family], family, PROMPTS))


@BOTH
def test_cached_states_give_back_the_same_prompts(shared, family):
    """As the latent cache keeps them: concatenated, with offsets."""
    backbone = shared[family]
    states = backbone.states(PROMPTS)
    offsets = [0, *torch.tensor([len(kept) for kept in states]).cumsum(0).tolist()]
    joined = torch.cat(states)
    restored = [joined[start:end] for start, end in itertools.pairwise(offsets)]
    assert torch.equal(backbone.pad(restored), backbone.embed(PROMPTS))
    lengths = [len(kept) for kept in states]
    if family == "wan":
        spelled = [len(f" {text}".encode()) + 1 for text in ("a red ball falls", "Tom & Jerry's blue box")]
        assert lengths == [*spelled, 1, miniature.TEXT_TOKENS], "bytes and the end mark"
        assert not backbone.pad(states)[0, spelled[0] :].any()
    else:
        assert lengths == [miniature.TEXT_TOKENS] * 4, "without a mask the padding's own states count"
        assert states[0][20:].abs().min() > 0 and not torch.allclose(states[0][20:], states[2][20:])


@BOTH
def test_prompts_carry_a_gradient_only_where_the_encoder_is_trained(fresh, family):
    backbone = fresh(family, parts=("text",))
    assert not backbone.embed(["a ball"]).requires_grad
    backbone.text_encoder.requires_grad_(True)
    backbone.embed(["a ball"]).square().sum().backward()
    assert backbone.text_encoder.shared.weight.grad.abs().sum() > 0


@BOTH
def test_states_of_another_backbone_are_refused(shared, family):
    with pytest.raises(Problem, match=r"97 tokens.*text_tokens.*encode"):
        shared[family].pad([torch.zeros(97, 64)])


def test_cogvideox_refuses_states_without_their_padding(shared):
    with pytest.raises(Problem, match=r"17 tokens.*32.*encode"):
        shared["cogvideox"].pad([torch.zeros(17, 64)])


# --- sampling -------------------------------------------------------------------------------------------------------


def sampling_of(family: str, **changes) -> config.Sampling:
    """Few steps; every value away from the pipelines' defaults, so that forgetting one shows."""
    other = {
        "cogvideox": {"scheduler": "ddim", "dynamic_guidance": True, "shift": None},
        "wan": {"scheduler": "unipc", "dynamic_guidance": False, "shift": 7.0},
    }
    values = {"steps": 3, "guidance": 2.5, "negative_prompt": "a green square"} | other[family] | changes
    return config.Sampling(**values)


BITS = 1e-4  # of a pixel in [0, 1]: the stock VAE takes a lone clip through another convolution


def stock_frames(folder: Path, family: str, cfg: config.Sampling, seed: int, transformer=None) -> torch.Tensor:
    """[1, 3, F, H, W] by diffusers alone."""
    swap = {} if transformer is None else {"transformer": transformer}
    pipeline = {"cogvideox": CogVideoXPipeline, "wan": WanPipeline}[family].from_pretrained(folder, **swap)
    pipeline.set_progress_bar_config(disable=True)
    now = pipeline.scheduler.config
    pipeline.scheduler = {
        "ddim": lambda: CogVideoXDDIMScheduler.from_config(now),
        "dpm": lambda: CogVideoXDPMScheduler.from_config(now),
        "unipc": lambda: UniPCMultistepScheduler.from_config(now, flow_shift=cfg.shift or 3.0),
        "euler": lambda: FlowMatchEulerDiscreteScheduler(shift=cfg.shift or 3.0),
    }[cfg.scheduler]()
    extra = {"use_dynamic_cfg": cfg.dynamic_guidance} if family == "cogvideox" else {}
    return pipeline(
        prompt=["a red ball falls"],
        negative_prompt=cfg.negative_prompt,
        height=32,
        width=32,
        num_frames=9,
        num_inference_steps=cfg.steps,
        guidance_scale=cfg.guidance,
        generator=Generator().manual_seed(seed),
        max_sequence_length=miniature.TEXT_TOKENS,
        output_type="pt",
        **extra,
    ).frames.transpose(1, 2)


def our_frames(backbone: TextToVideo, cfg: config.Sampling, seed: int) -> torch.Tensor:
    return backbone.sample(["a red ball falls"], cfg, [Generator().manual_seed(seed)])


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("cogvideox", {"scheduler": "ddim"}),
        ("cogvideox", {"scheduler": "dpm"}),
        ("cogvideox", {"scheduler": "dpm", "dynamic_guidance": False, "negative_prompt": ""}),
        ("wan", {"scheduler": "unipc"}),
        ("wan", {"scheduler": "euler"}),
        ("wan", {"scheduler": "unipc", "shift": None, "negative_prompt": ""}),
        ("wan", {"scheduler": "euler", "shift": None}),
    ],
)
def test_samples_are_plain_diffusers(shared, folders, family, changes):
    cfg = sampling_of(family, **changes)
    ours = our_frames(shared[family], cfg, seed=5)
    assert ours.shape == (1, 3, 9, 32, 32) and 0 <= ours.min() < ours.max() <= 1
    assert torch.allclose(ours, stock_frames(folders[family], family, cfg, seed=5), atol=BITS)


@BOTH
def test_sampling_is_deterministic_and_each_prompt_has_its_own_noise(shared, family):
    backbone, cfg = shared[family], sampling_of(family, steps=2)
    one, two, other = (our_frames(backbone, cfg, seed) for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.allclose(one, other, atol=1e-2)
    rngs = [Generator().manual_seed(2), Generator().manual_seed(1)]
    batch = backbone.sample(["a red ball falls"] * 2, cfg, rngs)
    assert torch.allclose(batch, torch.cat([other, one]), atol=2e-3), "a batch of two is the two alone"


def test_every_sampling_value_matters(shared):
    """Otherwise the equality with plain diffusers would prove little."""
    for family, changes in {
        "cogvideox": [{"guidance": 4.0}, {"dynamic_guidance": False}, {"scheduler": "dpm"}, {"negative_prompt": "sky"}],
        "wan": [{"guidance": 4.0}, {"shift": 2.0}, {"scheduler": "euler"}, {"negative_prompt": "sky"}],
    }.items():
        base = our_frames(shared[family], sampling_of(family), 1)
        for change in changes:
            assert not torch.equal(our_frames(shared[family], sampling_of(family, **change), 1), base), change


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("cogvideox", {"scheduler": "unipc"}, r"sampling.scheduler: 'unipc'.*cogvideox.*ddim, dpm"),
        ("wan", {"scheduler": "dpm"}, r"sampling.scheduler: 'dpm'.*wan.*unipc, euler"),
        ("cogvideox", {"shift": 3.0}, r"sampling.shift: 3.0.*null"),
        ("wan", {"dynamic_guidance": True}, r"sampling.dynamic_guidance:.*false"),
    ],
)
def test_sampling_values_of_the_other_family_are_refused(shared, family, changes, message):
    with pytest.raises(Problem, match=message):
        our_frames(shared[family], sampling_of(family, **changes), 1)


# --- saving and loading ---------------------------------------------------------------------------------------------


@BOTH
def test_a_tuned_transformer_goes_through_the_stock_classes(fresh, folders, family, tmp_path):
    """What `save` writes, diffusers reads: the stock pipeline over it samples the frames that we sample."""
    backbone, cfg = fresh(family), sampling_of(family, steps=2)
    before = our_frames(backbone, cfg, 3)
    with torch.no_grad():
        rng = Generator().manual_seed(1)
        for weight in backbone.transformer.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=rng)
    tuned = tmp_path / "transformer"
    backbone.save(tuned)
    after = our_frames(backbone, cfg, 3)
    assert not torch.allclose(before, after, atol=1e-3)

    again = fresh(family, transformer=str(tuned))
    for (name, ours), theirs in zip(
        backbone.transformer.named_parameters(), again.transformer.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    assert torch.equal(our_frames(again, cfg, 3), after)

    stock = backbone.transformer_class.from_pretrained(tuned)
    assert torch.allclose(stock_frames(folders[family], family, cfg, 3, transformer=stock), after, atol=BITS)


@BOTH
def test_what_is_saved_names_its_origin_and_no_folder_of_this_machine(folders, family, tmp_path, monkeypatch):
    monkeypatch.chdir(folders[family].parent)
    backbone = backbones.load(row_of(family, Path(family)), parts=("transformer",))
    backbone.save(tmp_path / "transformer")
    text = (tmp_path / "transformer" / "config.json").read_text()
    assert json.loads(text)["_name_or_path"] == family
    assert str(folders[family].parent) not in text and sorted(os.listdir(tmp_path / "transformer")) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]


@BOTH
def test_only_the_named_parts_are_loaded(fresh, family):
    trained = fresh(family, parts=("transformer",))
    assert trained.vae is None and trained.text_encoder is None
    assert trained.noise(latents(1, family), torch.tensor([1])).z_t.isfinite().all(), (
        "needs the VAE's config, not its weights"
    )
    encoder = fresh(family, parts=("vae", "text"))
    assert encoder.transformer is None and encoder.module is None
    assert not any(weight.requires_grad for part in (encoder.vae, encoder.text_encoder) for weight in part.parameters())
    assert all(weight.requires_grad for weight in trained.transformer.parameters())


@BOTH
def test_without_a_teacher_the_grid_is_the_rows_own(folders, family):
    backbone = backbones.load(row_of(family, folders[family]), parts=("transformer",))
    assert backbone.grid.latents == (FRAMES[family], 8, 8)
    assert backbone.grid.tokens == (FRAMES[family], 4, 4) and backbone.grid.motion[1:] == (4, 4)


@BOTH
def test_bf16_leaves_the_vae_in_fp32(fresh, family):
    backbone = fresh(family, dtype=torch.bfloat16)
    assert backbone.vae.dtype == torch.float32 and backbone.text_encoder.dtype == torch.bfloat16
    assert backbone.ends[0].weight.dtype == torch.bfloat16
    frames = our_frames(backbone, sampling_of(family, steps=2), 1)
    assert frames.shape == (1, 3, 9, 32, 32) and frames.dtype == torch.float32 and frames.isfinite().all()


# --- what a user reads ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 30}, r"transformer: num_layers is 6, .*`blocks`.* is 30; set blocks: 6"),
        ({"width": 64}, r"transformer: num_attention_heads x attention_head_dim is \d+, .*`width`.* is 64"),
        ({"patch": 4}, r"transformer: patch_size is 2, .*`patch`.* is 4"),
        ({"stride": (4, 8)}, r"vae: stride in time and space is \[[24], 4\], .*`stride`.* is \[4, 8\]"),
        ({"text_tokens": 226}, r"(transformer|tokenizer): .* is 32, .*`text_tokens`.* is 226"),
    ],
)
def test_a_row_that_disagrees_with_the_checkpoint(folders, family, changes, message):
    with pytest.raises(Problem, match=message):
        backbones.load(row_of(family, folders[family], **changes), parts=("text",))


def test_a_checkpoint_of_the_other_family(folders):
    with pytest.raises(
        Problem, match=r"holds a WanTransformer3DModel, .*`family`.*cogvideox.*CogVideoXTransformer3DModel"
    ):
        backbones.load(row_of("cogvideox", folders["wan"]))


def test_a_folder_that_is_not_there(folders):
    with pytest.raises(Problem, match=r"^resources/nothing/here: no such folder; set the backbone's `weights`"):
        backbones.load(row_of("wan", Path("resources/nothing/here")))
    with pytest.raises(Problem, match=r"runs/none/config.json: no such file"):
        backbones.load(row_of("wan", folders["wan"]), transformer="runs/none")


def test_a_hub_name_that_cannot_be_had(monkeypatch):
    asked = {}

    def offline(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        raise LocalEntryNotFoundError("no network and not in the cache\nmore lines")

    monkeypatch.setattr(loading, "snapshot_download", offline)
    with pytest.raises(
        Problem, match=r"^zai-org/No-2b: .*not in the cache\).*`weights`.*`moalign weights check` says how$"
    ):
        backbones.load(row_of("cogvideox", Path("zai-org/No-2b")), parts=("transformer", "text"))
    patterns = asked["zai-org/No-2b"]
    assert "transformer/*" in patterns and "text_encoder/*" in patterns and "tokenizer/*" in patterns
    assert "vae/*" not in patterns and "*/*config.json" in patterns


def test_a_hub_name_loads_from_the_folder_that_the_hub_gives(monkeypatch, folders):
    asked = []
    monkeypatch.setattr(loading, "snapshot_download", lambda name, **how: asked.append(how) or str(folders["wan"]))
    backbone = backbones.load(row_of("wan", Path("some/model"), revision="0fc1"), parts=("transformer",))
    assert asked[0]["revision"] == "0fc1"
    assert backbone.transformer.config._name_or_path == "some/model"


@BOTH
def test_damaged_files(folders, family, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders[family], folder)
    row = row_of(family, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Problem, match=r"transformer: cannot be loaded .*; fetch or make it again"):
        backbones.load(row, parts=("transformer",))
    weights.unlink()
    with pytest.raises(Problem, match=r"transformer: cannot be loaded"):
        backbones.load(row, parts=("transformer",))
    (folder / "text_encoder" / "model.safetensors").write_bytes(b"")
    with pytest.raises(Problem, match=r"text_encoder: cannot be loaded"):
        backbones.load(row, parts=("text",))
    (folder / "vae" / "config.json").write_text("{")
    with pytest.raises(Problem, match=r"vae/config.json: cannot be read"):
        backbones.load(row, parts=("text",))


@BOTH
def test_weights_that_are_missing_are_not_made_up(fresh, folders, family, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders[family], folder)
    for part, file in (("transformer", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        tensors = load_file(folder / part / file)
        gone = sorted(tensors)[3]
        del tensors[gone]
        save_file(tensors, folder / part / file, metadata={"format": "pt"})
        with pytest.raises(Problem, match=rf"{part}: 1 weights are missing, .*{gone.split('.')[-1]}"):
            backbones.load(row_of(family, folder), parts=("text" if part == "text_encoder" else part,))


def test_cogvideox_kinds_that_are_not_supported(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["cogvideox"], folder)
    for part, file, change, message in (
        ("scheduler", "scheduler_config.json", {"prediction_type": "epsilon"}, "prediction_type is epsilon"),
        ("transformer", "config.json", {"use_rotary_positional_embeddings": True}, "rotary"),
    ):
        path = folder / part / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(Problem, match=message):
            backbones.load(row_of("cogvideox", folder))


@BOTH
def test_tensors_that_do_not_fit(shared, family):
    backbone = shared[family]
    with pytest.raises(Problem, match=r"clips of shape \[3, 9, 64, 64\].*\[3, 9, 32, 32\]"):
        backbone.encode(torch.zeros(1, 3, 9, 64, 64))
    with pytest.raises(Problem, match=rf"latents of shape \[1, 16, 13, 8, 8\].*\[{FRAMES[family]}, 8, 8\].*encode"):
        backbone.noise(torch.zeros(1, C, 13, 8, 8), torch.tensor([1]))
    with pytest.raises(Problem, match=r"with 1 streams"):
        backbone.noise(latents(2, family), torch.tensor([1]))
    for layer in (0, 7):
        with pytest.raises(Problem, match=rf"align.layer: {layer} .*1-6"):
            step(backbone, layer)


# --- the miniature models -------------------------------------------------------------------------------------------


@BOTH
def test_miniature_models(family, tmp_path):
    state = torch.random.get_rng_state()
    one = miniature.build(tmp_path / "one", family, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    sums = (one / "SHA256SUMS").read_text()
    assert sums == (miniature.build(tmp_path / "two", family, seed=3) / "SHA256SUMS").read_text()
    assert sums != (miniature.build(tmp_path / "two", family, seed=4) / "SHA256SUMS").read_text()
    assert subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=one).returncode == 0
    assert len(sums.splitlines()) == sum(path.is_file() for path in one.rglob("*")) - 1
    assert sum(path.stat().st_size for path in one.rglob("*") if path.is_file()) < 19e6
    assert str(tmp_path) not in "".join(path.read_text() for path in one.rglob("*.json"))
    for scale in ("smoke", "miniature"):
        params = config.load(Path(__file__).parents[1] / "params.yaml", scale=scale)
        row = params.backbones[family].model_copy(update={"weights": str(one)})
        backbone = backbones.load(row, params.grid(family))
    z0 = backbone.encode(torch.zeros(1, 3, 17, 64, 64))
    _, (Y,) = backbone.predict(backbone.noise(z0, torch.tensor([1])), backbone.embed(["a ball"]), (4,))
    assert Y.shape == (1, *backbone.grid.tokens, row.width)


# --- the paper's sizes ----------------------------------------------------------------------------------------------


def paper_backbone(family: str) -> tuple[TextToVideo, int]:
    """The paper's transformer on the meta device: every shape, no memory. With its count of parameters."""
    params = config.load(Path(__file__).parents[1] / "params.yaml", scale="paper")
    with torch.device("meta"):
        if family == "cogvideox":
            transformer = CogVideoXTransformer3DModel()  # the class's defaults are CogVideoX-2B
        else:
            transformer = WanTransformer3DModel(
                num_attention_heads=12, attention_head_dim=128, num_layers=30, ffn_dim=8960, text_dim=4096, freq_dim=256
            )
    vae = {"scaling_factor": 1.15258426, "latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
    scheduler = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    cls = {"cogvideox": CogVideoX, "wan": Wan}[family]
    row = params.backbones[family]
    backbone = cls(row, params.grid(family), Parts(transformer, None, None, None, vae, scheduler))
    return backbone, sum(weight.numel() for weight in transformer.parameters())


@pytest.mark.parametrize(
    ("family", "billions", "latent", "text", "tokens", "motion"),
    [
        ("cogvideox", 1.69, (13, 16, 60, 90), 226, (13, 30, 45, 1920), (24, 10, 15)),
        ("wan", 1.42, (16, 13, 60, 104), 512, (13, 30, 52, 1536), (24, 10, 17)),
    ],
)
def test_the_papers_sizes(family, billions, latent, text, tokens, motion):
    """Through the whole transformer, the tap at block 18, the projector and the loss, and back."""
    backbone, count = paper_backbone(family)
    assert round(count / 1e9, 2) == billions
    z_t = torch.empty(1, *latent, device="meta")
    noised = Noised(z_t, torch.empty(1, device="meta"), z_t)
    prediction, (Y,) = backbone.predict(noised, torch.empty(1, text, 4096, device="meta"), (18,))
    assert prediction.shape == z_t.shape and Y.shape == (1, *tokens)
    assert backbone.grid.tokens == tokens[:3]
    params = config.load(Path(__file__).parents[1] / "params.yaml", scale="paper")
    with torch.device("meta"):
        projector = Projector(backbone.grid, tokens[3], params.align.hidden, params.teacher.channels[1])
        M = torch.empty(1, *motion, params.teacher.channels[1])
    Z = projector(Y)
    assert Z.shape == M.shape == (1, *motion, 64)
    align = soft_trd(Z.flatten(2, 3), M.flatten(2, 3), params.methods["moalign"].tau)
    reached = torch.autograd.grad(align, list(backbone.transformer.parameters()), allow_unused=True)
    names = [name for name, _ in backbone.transformer.named_parameters()]
    blocks = {
        n: [g for name, g in zip(names, reached, strict=True) if f"blocks.{n - 1}." in name] for n in range(1, 31)
    }
    for number, found in blocks.items():
        assert found and all((gradient is not None) == (number <= 18) for gradient in found), number
