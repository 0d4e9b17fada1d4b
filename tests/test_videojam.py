"""VideoJAM: flow as a picture, the widened transformer, joint noise, inner guidance, and the stages that use them.

Small random models of the stock classes; each point is checked against the formula, the stock classes, or CogVideoX.
"""

import colorsys
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, CogVideoXPipeline, CogVideoXTransformer3DModel
from torch import Generator, Tensor
from torch.nn.functional import interpolate
from torchvision.models import optical_flow

from moalign import backbones, config, manifest, shards
from moalign.backbones import VideoJAM, miniature
from moalign.clips import load_clip
from moalign.errors import Problem
from moalign.interfaces import Noised
from moalign.stages import align, collect, encode, sample, subset, targets
from moalign.teacher import raft
from moalign.teacher.flowvideo import flow_video, picture

TOP = Path(__file__).parents[1]
PARAMS = config.load(TOP / "params.yaml", scale="miniature")
PROMPTS = ["a red ball falls", "a box slides"]
C = miniature.LATENT_CHANNELS


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return miniature.build(tmp_path_factory.mktemp("models") / "cogvideox", "cogvideox", seed=0)


def row_of(folder: Path, **changes) -> config.Backbone:
    """The miniature's row with clips of 9 x 32 x 32: latents of 5 x 8 x 8, tokens of 5 x 4 x 4."""
    changes = {"weights": str(folder), "frames": 9, "size": (32, 32), **changes}
    return PARAMS.backbones["cogvideox"].model_copy(update=changes)


@pytest.fixture(scope="module")
def base(folder) -> backbones.CogVideoX:
    return backbones.load(row_of(folder))


@pytest.fixture(scope="module")
def widened(folder) -> VideoJAM:
    """As it is before the first step; no test changes it."""
    return backbones.load(row_of(folder), joint=True)


@pytest.fixture(scope="module")
def tuned(folder) -> VideoJAM:
    """As after a training: no weight is zero, and the flow half bears on the video."""
    backbone = backbones.load(row_of(folder), joint=True)
    rng = Generator().manual_seed(4)
    with torch.no_grad():
        for weight in backbone.transformer.parameters():
            weight += 0.05 * torch.randn(weight.shape, generator=rng)
    return backbone


def latents(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, C, 5, 8, 8, generator=Generator().manual_seed(seed))


def prompt_states(count: int) -> Tensor:
    return torch.randn(count, PARAMS.backbones["cogvideox"].text_tokens, 64, generator=Generator().manual_seed(1))


# --- the picture ----------------------------------------------------------------------------------------------------


def painted(u: float, v: float) -> list[float]:
    """RGB in [0, 1] of a uniform flow over 30 x 40 pixels, whose diagonal is 50: full brightness from 7.5 px on."""
    video = picture(torch.tensor([u, v], dtype=torch.float32).view(2, 1, 1).expand(2, 30, 40))
    assert video.shape == (3, 30, 40)
    assert (video == video[:, :1, :1]).all()
    return (video[:, 0, 0] / 2 + 0.5).tolist()


def test_right_is_red_and_brighter_the_faster():
    assert painted(0, 0) == [0, 0, 0]
    assert painted(7.5, 0) == [1, 0, 0]
    assert painted(3.75, 0) == [0.5, 0, 0]
    assert painted(80, 0) == [1, 0, 0], "longer vectors are no brighter"
    assert painted(7.4, 0)[0] < 1


def test_the_wheel_turns_with_the_vector():
    """Down, left and up are 90, 180 and 270 degrees of hue: v is positive downward."""
    for quarter, (u, v) in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        assert painted(5 * u, 5 * v) == pytest.approx(colorsys.hsv_to_rgb(quarter / 4, 1, 5 / 7.5), abs=1e-6)


def test_the_picture_is_hsv():
    flow = torch.randn(3, 2, 20, 21, generator=Generator().manual_seed(0)) * 4
    video = picture(flow)
    assert video.shape == (3, 3, 20, 21) and video.min() >= -1 and video.max() <= 1
    for clip, y, x in [(0, 0, 0), (1, 7, 20), (2, 19, 3), *((0, y, 5) for y in range(20))]:
        u, v = flow[clip, :, y, x].tolist()
        value = min(1, math.hypot(u, v) / (0.15 * math.hypot(20, 21)))
        rgb = colorsys.hsv_to_rgb(math.atan2(v, u) / (2 * math.pi) % 1, 1, value)
        assert (video[clip, :, y, x] / 2 + 0.5).tolist() == pytest.approx(rgb, abs=1e-5)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return optical_flow.raft_small(weights=None).eval()


def test_a_flow_video_is_made_of_torchvisions_flow_of_neighbours(network):
    """At another size and shape than the clip's, where the vectors must be stretched as the picture is."""
    x0 = torch.rand(2, 3, 5, 32, 48, generator=Generator().manual_seed(0)) * 2 - 1
    row = PARAMS.flow.model_copy(update={"size": (128, 136), "updates": 2})
    video = flow_video(network, x0, row)
    assert video.shape == x0.shape
    assert torch.equal(video[:, :, 4], video[:, :, 3]), "the last flow stands twice"
    for clip, k in [(0, 0), (1, 3)]:
        pair = interpolate(x0[clip, :, k : k + 2].transpose(0, 1), size=(128, 136), mode="bicubic", antialias=True)
        with torch.no_grad():
            flow = network(pair[:1], pair[1:], num_flow_updates=2)[-1]
        flow = interpolate(flow, size=(32, 48), mode="bilinear")[0]
        flow = torch.stack([flow[0] * 48 / 136, flow[1] * 32 / 128])
        assert picture(flow).std() > 0.01
        assert torch.allclose(video[clip, :, k], picture(flow), atol=2e-4)


# --- the widened transformer ----------------------------------------------------------------------------------------


def test_before_training_the_video_half_is_the_base_whatever_the_flow(base, widened):
    z0, streams, prompt = latents(2), torch.tensor([5, 6]), prompt_states(2)
    plain = base.noise(z0, streams)
    with torch.no_grad():
        expected, (Y_expected,) = base.predict(plain, prompt, (4,))
        for d in (latents(2, 1), 50 * latents(2, 2), torch.zeros_like(z0)):
            prediction, (Y,) = widened.predict(widened.noise(torch.cat([z0, d], 1), streams), prompt, (4,))
            video, flow = widened.halves(prediction)
            assert torch.equal(video, expected) and torch.equal(Y, Y_expected)
            assert not flow.any(), "the new output rows are zero"


def test_channels_are_counted_before_places_in_the_patch(tuned):
    """One row of `proj_out` belongs to one channel, and the later half of them to the flow."""
    noised = tuned.noise(torch.cat([latents(1), latents(1, 1)], 1), torch.tensor([1]))
    with torch.no_grad():
        before, _ = tuned.predict(noised, prompt_states(1))
        bias = tuned.transformer.proj_out.bias
        bias[C * 4 + 3] += 1  # channel C, the last place of its 2 x 2 patch
        after, _ = tuned.predict(noised, prompt_states(1))
        bias[C * 4 + 3] -= 1
    changed = ((after - before).abs() > 0.5).nonzero()
    assert set(changed[:, 2].tolist()) == {C}
    assert (changed[:, 3:] % 2 == 1).all() and len(changed) == 5 * 4 * 4


def test_gradients_reach_the_new_weights(folder):
    """New output rows at once; new input weights through the video at once, through the flow when that has rows."""
    backbone = backbones.load(row_of(folder), joint=True, parts=("transformer",))
    first, last = backbone.ends
    noised = backbone.noise(torch.cat([latents(1), latents(1, 1)], 1), torch.tensor([1]))

    def gradients(half: int) -> tuple[bool, bool]:
        """Whether the loss of one half reaches the new weights of the first and of the last projection."""
        backbone.transformer.zero_grad()
        prediction, _ = backbone.predict(noised, prompt_states(1))
        (backbone.halves(prediction)[half] - backbone.halves(noised.target)[half]).square().mean().backward()
        return bool(first.weight.grad[:, C:].any()), bool(last.weight.grad[C * 4 :].any())

    assert gradients(0) == (True, False)
    assert gradients(1) == (False, True)
    with torch.no_grad():
        last.weight[C * 4 :] += 0.01
    assert gradients(1) == (True, True)


def test_the_paper_sizes_are_widened():
    """CogVideoX-2B on the meta device: 1920 x 16 x 2 x 2 weights in, 64 rows and biases out, are all that is new."""
    with torch.device("meta"):
        transformer = CogVideoXTransformer3DModel()  # the class's defaults are CogVideoX-2B
    before = sum(weight.numel() for weight in transformer.parameters())
    backbones.videojam.widen(transformer)
    assert sum(weight.numel() for weight in transformer.parameters()) - before == 1920 * 64 + 64 * 1920 + 64
    z_t = torch.empty(1, 13, 32, 60, 90, device="meta")
    text, t = torch.empty(1, 226, 4096, device="meta"), torch.empty(1, device="meta")
    assert transformer(z_t, text, t, return_dict=False)[0].shape == z_t.shape


def test_a_tuned_folder_opens_in_the_stock_class_and_here(tuned, folder, tmp_path):
    tuned.save(tmp_path / "transformer")
    stock = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "transformer")
    assert stock.config.in_channels == stock.config.out_channels == 2 * C
    again = backbones.load(row_of(folder), transformer=tmp_path / "transformer", joint=True)
    assert again.transformer.config.in_channels == 2 * C, "not widened twice"
    noised = tuned.noise(torch.cat([latents(1), latents(1, 1)], 1), torch.tensor([1]))
    with torch.no_grad():
        expected, _ = tuned.predict(noised, prompt_states(1))
        assert torch.equal(again.predict(noised, prompt_states(1))[0], expected)
        assert torch.equal(stock(noised.z_t, prompt_states(1), noised.t, return_dict=False)[0], expected)

    pipeline = CogVideoXPipeline.from_pretrained(folder, transformer=stock)
    pipeline.set_progress_bar_config(disable=True)
    call = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 1, "max_sequence_length": 32}
    drawn = pipeline(PROMPTS[0], **call, generator=Generator().manual_seed(1), output_type="latent").frames
    assert drawn.shape == (1, 5, 2 * C, 8, 8)
    with pytest.raises(RuntimeError, match="channels"):
        pipeline(PROMPTS[0], **call, output_type="pt")


def test_transformers_of_other_widths_are_refused(tuned, folder, tmp_path):
    tuned.save(tmp_path / "transformer")
    with pytest.raises(Problem, match=r"transformer: 32 channels in and 32 out, where .* need 16; .*this method"):
        backbones.load(row_of(folder), transformer=tmp_path / "transformer", parts=("transformer",))
    path = tmp_path / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_channels": 24}))
    with pytest.raises(Problem, match=r"transformer: 24 channels in and 32 out, where .* need 16 or 32"):
        backbones.load(row_of(folder), transformer=tmp_path / "transformer", parts=("transformer",), joint=True)
    with pytest.raises(Problem, match="family: 'wan' has no model of video and flow; allowed: cogvideox"):
        backbones.load(row_of(folder, family="wan"), joint=True)


# --- noise ----------------------------------------------------------------------------------------------------------


def test_the_videos_noise_is_that_of_every_other_method(base, widened):
    z0, d, streams = latents(3), latents(3, 1), torch.tensor([7, -3, 2**62])
    plain, joint = base.noise(z0, streams), widened.noise(torch.cat([z0, d], 1), streams)
    assert torch.equal(joint.t, plain.t)
    for name in ("z_t", "target"):
        both = getattr(joint, name)
        assert both.shape == (3, 5, 2 * C, 8, 8)
        assert torch.equal(widened.halves(both)[0], getattr(plain, name))


def test_flow_is_noised_at_the_same_level_by_a_noise_of_its_own(widened):
    z0, d = latents(2), latents(2, 1)
    noised = widened.noise(torch.cat([z0, d], 1), torch.tensor([11, 12]))
    abar = widened.abar[noised.t].view(-1, 1, 1, 1, 1)
    eps = []
    for x, z_t, v in zip((z0, d), widened.halves(noised.z_t), widened.halves(noised.target), strict=True):
        assert torch.allclose(
            abar.sqrt() * z_t.double() - (1 - abar).sqrt() * v.double(),
            (x * widened.scale).transpose(1, 2).double(),
            atol=1e-5,
        )
        eps.append((1 - abar).sqrt() * z_t.double() + abar.sqrt() * v.double())
    for one in eps:
        assert abs(one.mean()) < 0.1 and abs(one.std() - 1) < 0.1
    assert abs((eps[0] * eps[1]).mean()) < 0.1
    alone = widened.noise(torch.cat([z0[1:], d[1:]], 1), torch.tensor([12]))
    assert torch.equal(alone.z_t, noised.z_t[1:]) and torch.equal(alone.target, noised.target[1:])


def test_a_share_of_the_flows_is_hidden(widened):
    streams = torch.arange(400) * 7919
    z_t = torch.ones(400, 1, 2 * C, 1, 1)
    noised = Noised(z_t, torch.zeros(400), z_t.clone())
    hidden = widened.hide(noised, 0.2, streams)
    video, flow = widened.halves(hidden.z_t)
    assert video.all() and hidden.target is noised.target and hidden.t is noised.t and z_t.all()
    blind = ~flow.flatten(1).any(1)
    assert torch.equal(blind, ~flow.flatten(1).all(1)), "whole clips"
    assert 50 < blind.sum() < 110
    part = widened.hide(Noised(z_t[300:], noised.t[300:], z_t[300:]), 0.2, streams[300:])
    assert torch.equal(part.z_t, hidden.z_t[300:]), "a clip's draw knows no batch"
    assert not widened.halves(widened.hide(noised, 1.0, streams).z_t)[1].any()
    assert widened.hide(noised, 0.0, streams).z_t.all()


def test_latents_without_their_flow_are_refused(widened):
    with pytest.raises(
        Problem, match="latents of 16 channels, where video and flow have 32; run `encode` and `targets`"
    ):
        widened.noise(latents(1), torch.tensor([1]))


# --- sampling -------------------------------------------------------------------------------------------------------


def sampling_of(**changes) -> config.Sampling:
    return PARAMS.backbones["cogvideox"].sampling.model_copy(update={"steps": 5, **changes})


def rngs_of(*seeds: int) -> list[Generator]:
    return [Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
def test_before_training_its_videos_are_the_bases(base, widened, scheduler):
    """So every step's noise is what the other runs of a table draw: DPM draws some at each."""
    cfg = sampling_of(scheduler=scheduler)
    expected = base.sample(PROMPTS, cfg, rngs_of(1, 2))
    assert torch.equal(widened.sample(PROMPTS, cfg, rngs_of(1, 2)), expected)
    assert torch.allclose(widened.sample(PROMPTS, cfg, rngs_of(1, 2), inner_guidance=3.0), expected, atol=1e-4)


def by_hand(backbone: VideoJAM, cfg: config.Sampling, seeds: list[int], w2: float) -> Tensor:
    """Videos of a loop as VideoJAM writes it: three predictions weighted at each step; without w2 two."""
    cls = {"ddim": CogVideoXDDIMScheduler, "dpm": CogVideoXDPMScheduler}[cfg.scheduler]
    scheduler = cls.from_config(backbone.scheduler_config)
    scheduler.set_timesteps(cfg.steps)
    y, nothing = backbone.embed(PROMPTS), backbone.embed([cfg.negative_prompt] * len(PROMPTS))
    # two generators per clip, the video's and another for the flow
    rngs = rngs_of(*seeds), rngs_of(*(seed ^ backbones.videojam.FLOW for seed in seeds))
    x, d = (torch.stack([torch.randn(5, C, 8, 8, generator=rng) for rng in half]) for half in rngs)
    old, back = [None, None], None

    def u(flow: Tensor, text: Tensor, t: Tensor) -> Tensor:
        return backbone.transformer(torch.cat([x, flow], 2), text, t.expand(len(x)), return_dict=False)[0]

    for number, t in enumerate(scheduler.timesteps):
        g = cfg.guidance
        if cfg.dynamic_guidance:
            g = 1 + g * (1 - math.cos(math.pi * ((cfg.steps - t.item()) / cfg.steps) ** 5)) / 2
        w1, inner = g - 1, w2 if number < cfg.steps / 2 else 0.0
        prediction = (1 + w1 + inner) * u(d, y, t) - w1 * u(d, nothing, t)
        if inner:
            prediction = prediction - inner * u(torch.zeros_like(d), y, t)
        moved = []
        for index, (latent, v, rng) in enumerate(zip((x, d), prediction.chunk(2, 2), rngs, strict=True)):
            if cfg.scheduler == "ddim":
                moved.append(scheduler.step(v, t, latent).prev_sample)
            else:
                latent, old[index] = scheduler.step(v, old[index], t, back, latent, generator=rng)
                moved.append(latent)
        (x, d), back = moved, t
    video = backbone.vae.decode(x.transpose(1, 2) / backbone.scale).sample
    return (video / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("scheduler", ["ddim", "dpm"])
@pytest.mark.parametrize("changes", [{"dynamic_guidance": True}, {"dynamic_guidance": False, "guidance": 4.0}, {}])
@torch.no_grad()
def test_inner_guidance_is_the_written_formula(tuned, scheduler, changes):
    changes = changes or {"dynamic_guidance": False, "guidance": 1.0}  # 1: the pipeline makes no pass without text
    cfg = sampling_of(scheduler=scheduler, **changes)
    for w2 in (3.0, 0.0):
        ours = tuned.sample(PROMPTS, cfg, rngs_of(1, 2), inner_guidance=w2)
        assert torch.allclose(ours, by_hand(tuned, cfg, [1, 2], w2), atol=1e-4), w2
    plain = tuned.sample(PROMPTS, cfg, rngs_of(1, 2))
    assert torch.equal(plain, ours)
    assert (tuned.sample(PROMPTS, cfg, rngs_of(1, 2), inner_guidance=3.0) - plain).abs().max() > 0.02
    assert not tuned.transformer._forward_hooks, "the hook is gone"


def test_it_samples_in_bf16(folder):
    """As on a GPU: the halves differ in no way before training, in whatever precision."""
    plain, joint = (backbones.load(row_of(folder), joint=joint, dtype=torch.bfloat16) for joint in (False, True))
    cfg = sampling_of(scheduler="dpm", steps=2)
    expected = plain.sample(PROMPTS, cfg, rngs_of(1, 2))
    assert torch.equal(joint.sample(PROMPTS, cfg, rngs_of(1, 2)), expected)
    assert joint.sample(PROMPTS, cfg, rngs_of(1, 2), inner_guidance=3.0).isfinite().all()


# --- the stages -----------------------------------------------------------------------------------------------------


def test_from_a_clip_to_a_sampled_video(folder, network, tmp_path):
    """collect, select, ingest, encode, targets, align, sample: the targets are the VAE's latents of the flow video."""
    models = tmp_path / "models"
    shutil.copytree(folder, models / "cogvideox")
    torch.save(network.state_dict(), models / "raft.pth")
    raw = config.load(TOP / "params.yaml", scale="smoke").model_dump(mode="json")
    few = {"steps": 2, "batch": 2, "validate_every": 2, "save_every": 2, "train_on": ["real"]}
    raw["sources"] = {"world": raw["sources"]["world"] | {"clips": 6}}
    raw["subset"] |= {"clips": 4, "shard": 4, "heldout": 0.2}
    raw["flow"] |= {"weights": str(models / "raft.pth"), "updates": 2}
    raw["backbones"]["cogvideox"] |= {"weights": str(models / "cogvideox")}
    raw["backbones"]["cogvideox"]["sampling"] |= {"steps": 2}
    raw["align"] |= few
    raw["benches"]["physics"] |= {"prompts": str(tmp_path / "prompts.txt")}
    params = config.parse(raw)

    def pin(stage: str, **names) -> str:
        path = tmp_path / "pins" / f"{stage}.yaml"
        manifest.write_text(path, config.dump(config.pin(params, stage, **names)))
        return str(path)

    def at(name: str) -> str:
        return str(tmp_path / name)

    collect.run(pin("collect", source="world"), at("world/annotations.json"))
    subset.select(pin("subset"), {"world": at("world/annotations.json")}, at("clips/selection.jsonl"))
    clips = at("clips/real/0000.jsonl")
    subset.ingest(pin("subset"), at("clips/selection.jsonl"), {"world": at("world")}, 0, clips)
    encode.run(pin("encode", backbone="cogvideox"), clips, at("latents/0000.jsonl"))

    targets.run(pin("targets", backbone="cogvideox", target="flow_video"), clips, at("targets/0000.jsonl"))
    given, made = manifest.read(clips, manifest.Clip), manifest.read(at("targets/0000.jsonl"), manifest.Target)
    assert [row.key for row in made.rows] == [row.key for row in given.rows] and len(made.rows) == 4
    shard = shards.TensorShard(made.locate(made.rows[0].file))
    assert shard["target"].get_shape() == [4, C, 9, 16, 16] and shard.metadata["target"] == "flow_video"
    row = params.backbones["cogvideox"]
    vae = backbones.load(row, parts=("vae",)).vae
    network = raft.load(params.flow)
    for clip, where in zip(given.rows[:2], made.rows, strict=False):
        x0 = load_clip(given.path.parent, clip, row.frames, row.fps, row.size)
        with torch.no_grad():
            d = vae.encode(flow_video(network, x0[None], params.flow)).latent_dist.mean[0]
        assert d.std() > 0.01
        assert torch.equal(shard.row("target", where.index), d.half())

    given = [clips], [at("latents/0000.jsonl")]
    align.run(pin("align", run="cog-videojam", seed=0), *given, at("work"), at("run/manifest.jsonl"), [str(made.path)])
    log = [json.loads(line) for line in Path(at("run/log.jsonl")).read_text().splitlines()]
    first = next(line for line in log if "denoise" in line)
    assert first["denoise"] > 0 and first["align"] > 0
    assert first["loss"] == pytest.approx(first["denoise"] + first["align"], rel=1e-4)

    manifest.write_text(Path(at("prompts.txt")), PROMPTS[0] + "\n")
    share = pin("sample", run="cog-videojam", seed=0, bench="physics")
    assert config.SamplePin.load(share).inner_guidance == 3.0
    sample.run(share, 0, at("work"), at("samples/physics/0000.jsonl"), run=at("run/manifest.jsonl"))
    assert len(manifest.read(at("samples/physics/0000.jsonl"), manifest.Sample).rows) == 1
