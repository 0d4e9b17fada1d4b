"""Each stage by itself, in the chain's order, on a handful of clips and small random models of the true classes."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import optical_flow

from moalign import cli, config, manifest, shards, video
from moalign import clips as order
from moalign.backbones import miniature as blueprint
from moalign.clips import load_clip
from moalign.errors import Problem
from moalign.manifest import Choice, Clip, Drawn, Flow, Latent, Sample, Target
from moalign.stages import align, collect, draw, encode, flow, sample, subset, synth, targets
from moalign.teacher import motion, raft, videomae

TOP = Path(__file__).parents[1]
CLIPS = 5
PROMPTS = ["a red ball falls", 'a "blue" box slides']


@dataclass
class Home:
    """A folder with models and the parameters that name them."""

    folder: Path
    params: config.Params

    def pin(self, stage: str, **names) -> str:
        """Path of a job's pin."""
        path = self.folder / "pins" / f"{stage}{''.join(f'-{name}' for name in names.values())}.yaml"
        manifest.write_text(path, config.dump(config.pin(self.params, stage, **names)))
        return str(path)

    def __truediv__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("stages")
    raw = config.read_yaml(TOP / "params.yaml")
    for name in ("miniature", "smoke"):
        raw = config.merge(raw, {k: v for k, v in config.read_yaml(TOP / f"scales/{name}.yaml").items() if k != "base"})
    few = {"steps": 2}
    params = config.parse(
        config.merge(
            raw,
            {
                "sources": {"footage": None, "world": {"clips": CLIPS + 3}},
                "subset": {"clips": CLIPS, "shard": CLIPS, "heldout": 0.2},
                "synth": {"clips": 2, "shard": 2},
                "flow": {"weights": str(folder / "models/raft.pth"), "updates": 2},
                "encoder": {"weights": str(folder / "models/videomae.pth")},
                "backbones": {
                    name: {"weights": str(folder / "models" / name), "sampling": few} for name in ("cogvideox", "wan")
                },
                "benches": {"physics": {"prompts": str(folder / "prompts.txt"), "videos": 2}},
            },
        )
    )
    for family in ("cogvideox", "wan"):
        blueprint.build(folder / "models" / family, family)
    torch.manual_seed(0)
    torch.save(optical_flow.raft_small(weights=None).state_dict(), folder / "models/raft.pth")
    videomae.save(videomae.VideoMAE(params.encoder), folder / "models/videomae.pth")
    manifest.write_text(folder / "prompts.txt", "\n".join(PROMPTS) + "\n")
    return Home(folder, params)


@pytest.fixture(scope="module")
def real(home) -> manifest.Manifest[Clip]:
    """A shard of real clips, through collect, select and ingest."""
    collect.run(home.pin("collect", source="world"), home / "world/annotations.json")
    pin = home.pin("subset")
    subset.select(pin, {"world": home / "world/annotations.json"}, home / "clips/selection.jsonl")
    subset.ingest(pin, home / "clips/selection.jsonl", {"world": home / "world"}, 0, home / "clips/real/0000.jsonl")
    return manifest.read(home / "clips/real/0000.jsonl", Clip)


@pytest.fixture(scope="module")
def synthetic(home, real) -> manifest.Manifest[Clip]:
    synth.run(home.pin("synth"), home / "clips/selection.jsonl", 0, home / "clips/synth/0000.jsonl")
    return manifest.read(home / "clips/synth/0000.jsonl", Clip)


def test_real_clips_are_whole(home, real):
    assert len(real.rows) == CLIPS
    assert {row.split for row in real.rows} == {"train", "heldout"}
    x0 = load_clip(real.path.parent, real.rows[0], 17, 8.0, (64, 64))
    assert x0.shape == (3, 17, 64, 64)
    assert -1 <= x0.min() < x0.max() <= 1


def test_synthetic_clips_keep_their_prompt_and_their_seed(home, real, synthetic):
    captions = {row.key: row.caption for row in manifest.read(home / "clips/selection.jsonl", Choice).rows}
    assert len(synthetic.rows) == 2
    for number, row in enumerate(synthetic.rows):
        key, seed = row.path.split("#")
        assert row.caption == captions[key]
        assert int(seed) == synth.noise_seed(0, number)
        assert video.probe(shards.read_bytes(synthetic.locate(row.file), row.offset, row.size)).frames == 17
    assert not list(synthetic.path.parent.glob(".0000*")), "finished pieces are cleared away"


def test_a_killed_synth_keeps_its_finished_batches(home, synthetic, tmp_path):
    """What was finished under the same pin is used as it is; what was finished under another is not."""
    pin, selection, out = home.pin("synth"), home / "clips/selection.jsonl", tmp_path / "0000.jsonl"
    folder = shards.resumable(tmp_path / ".0000", manifest.sha256(pin) + manifest.sha256(selection))
    for number in range(2):
        video.write(folder / f"{number}.mp4", np.full((17, 64, 64, 3), 200, np.uint8), 8.0)
    synth.run(pin, selection, 0, str(out))
    for row in manifest.read(out, Clip).rows:
        assert video.read(shards.read_bytes(tmp_path / row.file, row.offset, row.size), [0]).mean() > 190
    stale = shards.resumable(tmp_path / ".0001", "another pin")
    (stale / "0.mp4").write_bytes(b"stale")
    assert not (shards.resumable(tmp_path / ".0001", "this pin") / "0.mp4").exists()


def test_flow_is_stored_clip_by_clip(home, real):
    flow.run(home.pin("flow"), str(real.path), home / "flow/0000.jsonl")
    made = manifest.read(home / "flow/0000.jsonl", Flow)
    assert [row.key for row in made.rows] == [row.key for row in real.rows]
    shard = shards.TensorShard(made.locate(made.rows[0].file))
    assert shard["offsets"].get_shape() == [CLIPS + 1]
    row = made.rows[2]
    O = raft.unpack(shard.ragged("flow", row.index), home.params.flow.size)
    assert O.shape == (7, 2, 128, 128)
    assert O.square().sum(1).sqrt().mean().item() == pytest.approx(row.motion, abs=0.01)


def test_latents_decode_to_what_was_encoded(home, real):
    encode.run(home.pin("encode", backbone="cogvideox"), str(real.path), home / "latents/0000.jsonl")
    made = manifest.read(home / "latents/0000.jsonl", Latent)
    shard = shards.TensorShard(made.locate(made.rows[0].file))
    assert shard["mean"].get_shape() == [CLIPS, blueprint.LATENT_CHANNELS, 9, 16, 16]
    offsets = shard["offsets"][:].tolist()
    assert np.diff(offsets).tolist() == [row.tokens for row in made.rows]
    assert shard["prompt"].get_shape() == [offsets[-1], 64]


def shortened(home: Home, **align: int) -> Home:
    """The same home with two seeds, and other numbers of stage 2."""
    few = {"seeds": (0, 1), "align": home.params.align.model_copy(update=align)}
    return Home(home.folder, home.params.model_copy(update=few))


def listed(home: Home, out: str, clips: list[str]) -> dict[str, list[str]]:
    """What `draw` lists, by list."""
    draw.run(home.pin("draw"), clips, home / f"{out}/manifest.jsonl")
    made = manifest.read(home / f"{out}/manifest.jsonl", Drawn)
    lists = {row.file: made.locate(row.file).read_text().split() for row in made.rows}
    assert [row.clips for row in made.rows] == [len(keys) for keys in lists.values()]
    return lists


def test_what_trainings_draw_is_listed(home, real, synthetic):
    """Two seeds, one step of two clips, and all held-out clips: they are few."""
    clips = [str(real.path), str(synthetic.path)]
    lists = listed(shortened(home, steps=1, batch=2), "drawn", clips)
    assert list(lists) == ["real/0000.txt", "synth/0000.txt"]
    rows = [*real.rows, *synthetic.rows]
    train = sorted(row.key for row in rows if row.split == "train")
    expected = {train[i] for seed in (0, 1) for i in order.draw(seed, 0, 2, len(train))}
    assert len(expected) < len(train)
    expected |= {row.key for row in rows if row.split == "heldout"}
    assert lists["real/0000.txt"] == [row.key for row in real.rows if row.key in expected]
    assert lists["synth/0000.txt"] == [row.key for row in synthetic.rows if row.key in expected]
    everything = listed(shortened(home, steps=50, batch=2), "drawn-all", clips)
    assert [key for keys in everything.values() for key in keys] == [row.key for row in rows]


def test_a_training_on_what_is_drawn_is_the_training_on_everything(home, real, tmp_path):
    """Only the drawn clips are made, the numbers stay, and what another seed would draw is missed before it starts."""
    short = shortened(home, steps=1, batch=2)
    one = Home(home.folder, short.params.model_copy(update={"seeds": (0,)}))
    keys = listed(one, "drawn-one", [str(real.path)])["real/0000.txt"]
    assert len(keys) < CLIPS
    logs = []
    for drawn in (home / "drawn-one/real/0000.txt", None):
        folder = tmp_path / ("few" if drawn else "whole")
        latents, tokens = str(folder / "latents/0000.jsonl"), str(folder / "targets/0000.jsonl")
        encode.run(home.pin("encode", backbone="cogvideox"), str(real.path), latents, drawn=drawn)
        pin = home.pin("targets", backbone="cogvideox", target="tokens")
        targets.run(pin, str(real.path), tokens, drawn=drawn)
        made = keys if drawn else [row.key for row in real.rows]
        assert [row.key for row in manifest.read(latents, Latent).rows] == made
        assert [row.key for row in manifest.read(tokens, Target).rows] == made

        def train(seed: int, folder=folder, given=([str(real.path)], [latents]), tokens=tokens) -> Path:
            pin, work = short.pin("align", run="cog-no_motion", seed=seed), str(folder / "work")
            align.run(pin, *given, work, str(folder / f"s{seed}/manifest.jsonl"), [tokens])
            return folder / f"s{seed}"

        logs.append([(train(0) / name).read_bytes() for name in ("log.jsonl", "projector-4.safetensors")])
        if drawn:
            with pytest.raises(Problem, match=r"no Latent row in the 1 manifests given"):
                train(1)
            assert not (folder / "s1").exists()
    assert logs[0] == logs[1]


@pytest.mark.parametrize(("target", "width"), [("tokens", 192), ("motion", 16)])
def test_targets_have_the_motion_grid(home, real, target, width):
    teacher = None
    if target == "motion":
        teacher = home / "teacher/manifest.jsonl"
        head = motion.MotionHead(192, home.params.teacher.channels)
        decoder = motion.FlowDecoder(16, home.params.teacher.decoder, home.params.flow.size)
        with manifest.making(teacher, manifest.Weights, pin=home.pin("teacher")) as made:
            motion.save(made.path.parent / "teacher.safetensors", head, decoder)
            made.file("teacher.safetensors")
            made.rows.append(manifest.Weights("teacher", "teacher.safetensors", 0))
    pin = home.pin("targets", backbone="cogvideox", target=target)
    out = home / f"targets/{target}.jsonl"
    targets.run(pin, str(real.path), out, teacher)
    made = manifest.read(out, Target)
    shard = shards.TensorShard(made.locate(made.rows[0].file))
    assert shard["target"].get_shape() == [CLIPS, 8, 8, 8, width]
    assert (teacher in made.header.inputs) == (target == "motion")


def test_a_motion_target_needs_the_teacher(home, real):
    with pytest.raises(Problem, match="--teacher: missing"):
        targets.run(home.pin("targets", backbone="cogvideox", target="motion"), str(real.path), home / "t.jsonl")


def sampled(home, run: str, out: str, **paths) -> manifest.Manifest[Sample]:
    sample.run(home.pin("sample", run=run, seed=0, bench="physics"), 0, home / "work", out, **paths)
    return manifest.read(out, Sample)


def test_samples_differ_by_noise_and_repeat_by_seed(home, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = sampled(home, "cog-base", home / "samples/cog-base/physics/0000.jsonl")
    assert [(row.prompt_id, row.index) for row in first.rows] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [row.prompt for row in first.rows] == [PROMPTS[0]] * 2 + [PROMPTS[1]] * 2
    assert len({row.seed for row in first.rows}) == 4
    hashes = [first.header.files[row.file]["sha256"] for row in first.rows]
    assert len(set(hashes)) == 4
    assert len(list(Path(home / "work/physics/wandb").glob("offline-run-*/files/media/videos/**/*.mp4"))) == len(
        PROMPTS
    )
    monkeypatch.setenv("WANDB_MODE", "disabled")
    second = sampled(home, "cog-base", str(tmp_path / "physics/0000.jsonl"))
    assert [second.header.files[row.file]["sha256"] for row in second.rows] == hashes
    still = sampled(home, "cog-static", home / "samples/cog-static/physics/0000.jsonl", still=str(first.path))
    for moving, frozen in zip(first.rows, still.rows, strict=True):
        frames = video.read(still.locate(frozen.file), list(range(17)))
        assert np.abs(frames.astype(int) - frames[0].astype(int)).max() <= 12  # the codec's own wavering
        assert np.abs(frames[0].astype(int) - video.read(first.locate(moving.file), [0])[0].astype(int)).mean() < 3


def test_samples_of_no_transformer_or_of_another_shard_are_one_problem(home, tmp_path):
    pin = home.pin("sample", run="cog-base", seed=0, bench="physics")
    with manifest.making(tmp_path / "other.jsonl", manifest.Weights, pin=pin) as made:
        made.rows.append(manifest.Weights("teacher", "teacher.safetensors", 0))
    with pytest.raises(Problem, match="no transformer, but teacher; --run takes"):
        trained = home.pin("sample", run="cog-ft", seed=0, bench="physics")
        sample.run(trained, 0, home / "work", str(tmp_path / "physics/0000.jsonl"), run=str(tmp_path / "other.jsonl"))
    with manifest.making(tmp_path / "none.jsonl", Sample, pin=pin):
        pass
    with pytest.raises(Problem, match="no video 0 of prompt 0; --still takes"):
        sampled(home, "cog-static", str(tmp_path / "still/physics/0000.jsonl"), still=str(tmp_path / "none.jsonl"))


def test_a_full_gpu_is_one_message_with_the_keys_that_help(monkeypatch, capsys):
    def full(**_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")

    monkeypatch.setattr(flow, "run", full)
    assert cli.main(["flow", "--config", "pin.yaml", "--clips", "0000.jsonl", "--out", "out.jsonl"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("moalign flow: CUDA out of memory; ") and "align.checkpointing: keep_attention" in said


def test_a_killed_sampling_goes_on_to_the_same_videos(home, tmp_path, monkeypatch):
    """Whole batches are kept, torn ones drawn again in the same company, so that every byte is the same."""
    monkeypatch.setitem(sample.BATCH, "cpu", 2)
    whole = sampled(home, "cog-base", str(tmp_path / "whole/physics/0000.jsonl"))
    pin, prompts = home.pin("sample", run="cog-base", seed=0, bench="physics"), home / "prompts.txt"
    folder = shards.resumable(tmp_path / "physics/0000", manifest.sha256(pin) + manifest.sha256(prompts))
    for cell in [(0, 0), (0, 1), (1, 1)]:  # the kill came before (1, 0) was written
        shutil.copy(whole.locate(f"0000/{sample.file_of(*cell)}"), folder)
    drawn = []
    monkeypatch.setattr(
        video, "write", lambda path, *rest, write=video.write: (drawn.append(path.name), write(path, *rest))
    )
    made = sampled(home, "cog-base", str(tmp_path / "physics/0000.jsonl"))
    assert drawn == [sample.file_of(1, 0), sample.file_of(1, 1)]
    assert made.header.files == whole.header.files


def test_the_static_control_needs_what_it_repeats(home, tmp_path):
    with pytest.raises(Problem, match="--still: missing; cog-static repeats"):
        sampled(home, "cog-static", str(tmp_path / "x.jsonl"))
