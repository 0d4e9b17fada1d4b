"""Clips for the trainings: the right frames, joined by key, drawn in an order that a restart does not change."""

import itertools
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from moalign import clips, manifest, shards, video
from moalign.errors import Problem

PIN = "stage: flow\nrevision: 1\nmachine: {device: cpu, threads: 1, processes: 1}\n"
ORDER = [0, 5, 4, 7, 2, 3, 8, 1, 6, 9]  # of ten clips, seed 0, epoch 0
STREAMS = [2306999256987196777, 5220111211313989555]  # seed 0, step 7, clips a and b


def film(frames=97, height=64, width=200):
    """A clip with a bright bar whose place tells the frame: columns 2 i and 2 i + 1."""
    pixels = np.full((frames, height, width, 3), 40, np.uint8)
    for i in range(frames):
        pixels[i, :, 2 * i : 2 * i + 2] = 220
    return pixels


def places(x0):
    """Which stored frame each frame of x0 [3, F, H, W] is."""
    return (x0.mean((0, 2)).argmax(-1) // 2).tolist()


def store(folder, rows, name="0000", pixels=None):
    """A shard of clips: (key, split, source) rows, fps 16."""
    (folder / "pin.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "pin.yaml").write_text(PIN)
    pixels = film() if pixels is None else pixels
    data = video.encode(pixels, 16)
    with manifest.making(folder / f"{name}.jsonl", manifest.Clip, pin=folder / "pin.yaml") as made:
        with shards.TarWriter(folder / f"{name}.tar") as tar:
            for key, split, source in rows:
                place = tar.add(f"{key}.mp4", data)
                size = (len(pixels), 16.0, *pixels.shape[1:3])
                made.rows.append(manifest.Clip(key, split, source, f"{key}.mov", "a", f"{name}.tar", *place, *size))
        made.file(f"{name}.tar")
    return folder / f"{name}.jsonl"


def stack(folder, kind, keys, name, tensors, **more):
    """A shard of stacked tensors with one row per key."""
    (folder / "pin.yaml").parent.mkdir(parents=True, exist_ok=True)
    (folder / "pin.yaml").write_text(PIN)
    with manifest.making(folder / f"{name}.jsonl", kind, pin=folder / "pin.yaml") as made:
        shards.write_tensors(folder / f"{name}.safetensors", tensors)
        for i, key in enumerate(keys):
            extra = {field: values[i] for field, values in more.items()}
            made.rows.append(kind(key=key, file=f"{name}.safetensors", index=i, **extra))
        made.file(f"{name}.safetensors")
    return folder / f"{name}.jsonl"


# --- pixels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "fps", "expected"),
    [
        ("mine", 8.0, list(range(0, 97, 2))),  # CogVideoX from a 16 fps proxy
        ("mine", 16.0, list(range(49))),  # Wan
        (clips.SYNTH, 8.0, list(range(49))),  # a synthetic clip at its own rate
    ],
)
def test_frames_are_picked_at_the_rate_asked(tmp_path, source, fps, expected):
    clip = manifest.read(store(tmp_path, [("a", "train", source)]), manifest.Clip).rows[0]
    x0 = clips.load_clip(tmp_path, clip, 49, fps, (64, 200))
    assert x0.shape == (3, 49, 64, 200) and x0.dtype == torch.float32 and x0.is_contiguous()
    assert places(x0) == expected
    assert x0.min() >= -1 and x0.max() <= 1


def test_frames_cover_the_size_and_are_cropped_at_the_centre(tmp_path):
    pixels = film(9, width=96)
    pixels[:, :, :16] = pixels[:, :, 80:] = 255  # margins that a square crop of 64 x 96 leaves out
    pixels[:, :, 16:80] = 40 + 16 * np.arange(9, dtype=np.uint8)[:, None, None, None]
    clip = manifest.read(store(tmp_path, [("a", "train", "mine")], pixels=pixels), manifest.Clip).rows[0]
    x0 = clips.load_clip(tmp_path, clip, 9, 16, (32, 32))
    assert x0.shape == (3, 9, 32, 32)
    grey = (x0[..., 2:-2].mean((0, 2, 3)) + 1) * 127.5
    assert (grey - (40 + 16 * torch.arange(9))).abs().max() < 4


def test_black_and_white_are_minus_one_and_one():
    frames = np.stack([np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)])
    x0 = clips.normalise(frames)
    assert (x0[:, 0] == -1).all() and (x0[:, 1] == 1).all()
    assert np.array_equal(clips.to_frames((x0 + 1) / 2), frames)


def test_a_clip_too_short_or_damaged_is_named(tmp_path):
    path = store(tmp_path, [("mine-abc", "train", "mine")])
    clip = manifest.read(path, manifest.Clip).rows[0]
    with pytest.raises(Problem, match=r"0000\.tar: mine-abc: 97 frames at 16 fps do not hold 50 at 8 fps"):
        clips.load_clip(tmp_path, clip, 50, 8, (64, 96))
    tar = tmp_path / "0000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(Problem, match=r"0000\.tar: mine-abc: not a video; remove its manifest"):
        clips.load_clip(tmp_path, clip, 49, 8, (64, 96))


# --- datasets ------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path):
    """Two shards of clips with flow, latents and targets whose rows are in another order; `c` is held out."""
    keys = ["d", "b", "a"]
    made = {
        "clips": [
            store(tmp_path / "clips", [("b", "train", "mine"), ("a", "train", "mine")], "0000"),
            store(tmp_path / "clips", [("d", "train", "mine"), ("c", "heldout", "mine")], "0001"),
        ]
    }
    flow = shards.end_to_end("flow", [torch.full((n,), ord(key), dtype=torch.uint8) for n, key in enumerate(keys, 7)])
    made["flow"] = [stack(tmp_path / "flow", manifest.Flow, keys, "0000", flow, motion=[1.0] * 3)]
    tokens = [3, 1, 2]
    states = torch.cat([torch.full((n, 5), float(ord(key))) for key, n in zip(keys, tokens, strict=True)])
    latents = {
        "mean": torch.stack([torch.full((4, 2, 3, 3), float(ord(key))) for key in keys]).half(),
        "prompt": states,
        "offsets": torch.tensor([0, 3, 4, 6]),
    }
    made["latents"] = [stack(tmp_path / "latents", manifest.Latent, keys, "0000", latents, tokens=tokens)]
    target = torch.stack([torch.full((2, 3, 3, 7), float(ord(key))) for key in keys]).half()
    made["targets"] = [stack(tmp_path / "targets", manifest.Target, keys, "0000", {"target": target})]
    return made


def flow_clips(world, split="train"):
    return clips.FlowClips(world["clips"], world["flow"], split, 5, 8.0, (32, 48))


def test_stage_1_joins_pixels_and_flow_by_key(world):
    data = flow_clips(world)
    assert data.keys == ["a", "b", "d"] and len(data) == 3
    for i, key in enumerate(data.keys):
        item = data[i]
        assert item["key"] == key and item["x0"].shape == (3, 5, 32, 48)
        assert item["flow"].tolist() == [ord(key)] * {"d": 7, "b": 8, "a": 9}[key]


def test_stage_2_joins_latents_prompts_and_targets_by_key(world):
    data = clips.LatentClips(world["clips"], world["latents"], world["targets"], "train", text_tokens=4)
    tokens = {"d": 3, "b": 1, "a": 2}
    for i, key in enumerate(data.keys):
        item = data[i]
        for name, shape in (("z0", (4, 2, 3, 3)), ("target", (2, 3, 3, 7))):
            assert item[name].shape == shape and item[name].dtype == torch.float32 and (item[name] == ord(key)).all()
        assert item["prompt"].shape == (4, 5)
        assert item["prompt"].sum(1).ne(0).tolist() == [place < tokens[key] for place in range(4)]
        assert item["prompt"][0, 0] == ord(key)
    bare = clips.LatentClips(world["clips"], world["latents"], [], "train", text_tokens=4)
    assert "target" not in bare[0]


def test_only_what_is_drawn_needs_rows(world):
    """Clips are counted whole, so that the draws stay what they were; a drawn one without a row is named at once."""
    without_b = stack(
        world["latents"][0].parent / "few",
        manifest.Latent,
        ["d", "a"],
        "0000",
        {
            "mean": torch.tensor([[ord("d")], [ord("a")]]).half(),
            "prompt": torch.ones(3, 5),
            "offsets": torch.tensor([0, 1, 3]),
        },
        tokens=[1, 2],
    )
    given = (world["clips"], [without_b], world["targets"], "train", 4)
    data = clips.LatentClips(*given, needed=lambda n: [0, n - 1])
    assert data.keys == ["a", "b", "d"] and list(data.latents) == list(data.targets) == ["a", "d"]
    assert data[0]["z0"] == ord("a") and data[2]["z0"] == ord("d")
    with pytest.raises(Problem, match=r"^b: no Latent row in the 1 manifests given"):
        clips.LatentClips(*given, needed=lambda n: clips.drawn(0, 1, 3, n))
    with pytest.raises(Problem, match=r"^b: no Latent row in the 1 manifests given"):
        clips.LatentClips(*given)


def test_a_list_picks_a_shards_clips(world, tmp_path):
    path, drawn = world["clips"][1], tmp_path / "0001.txt"
    drawn.write_text("c\n")
    assert [row.key for row in clips.of_shard(path, drawn).rows] == ["c"]
    assert [row.key for row in clips.of_shard(path, None).rows] == ["d", "c"]
    drawn.write_text("c\nz\n")
    with pytest.raises(Problem, match=r"0001\.txt: lists z, not among the clips of .*0001\.jsonl; run `draw` again"):
        clips.of_shard(path, drawn)
    with pytest.raises(Problem, match=r"gone\.txt: no such list; run `draw`"):
        clips.of_shard(path, tmp_path / "gone.txt")


def test_the_order_of_manifests_does_not_matter(world):
    turned = clips.FlowClips(world["clips"][::-1], world["flow"], "train", 5, 8.0, (32, 48))
    assert turned.keys == flow_clips(world).keys


def test_missing_keys_are_listed(world):
    with pytest.raises(Problem, match=r"^c: no Flow row in the 1 manifests given"):
        flow_clips(world, "heldout")
    with pytest.raises(Problem, match=r"^a, b, d: no Target row in the 0 manifests"):
        clips.Clips(world["clips"], "train").join([], manifest.Target)


def test_a_long_list_of_missing_keys_is_shortened(tmp_path):
    path = store(tmp_path, [(f"k{i}", "train", "mine") for i in range(8)], pixels=film(2))
    with pytest.raises(Problem, match=r"^k0, k1, k2, k3, k4 and 3 more: no Flow row"):
        clips.Clips([path], "train").join([], manifest.Flow)


def test_a_shard_given_twice_is_refused(world):
    with pytest.raises(Problem, match="b is in an earlier manifest too"):
        clips.Clips([world["clips"][0], world["clips"][0]], "train")


def test_more_prompt_states_than_allowed_is_a_problem(world):
    data = clips.LatentClips(world["clips"], world["latents"], [], "train", text_tokens=2)
    with pytest.raises(Problem, match="d: 3 prompt states where its manifest says 3 and at most 2 are allowed"):
        data[2]


def test_workers_give_what_this_process_gives(world):
    """The shards and the decoder have been used here before the other process starts."""
    data = flow_clips(world)
    order = [clips.draw(0, step, 2, len(data)) for step in range(3)]
    loaders = (DataLoader(data, batch_sampler=order, num_workers=n, collate_fn=list) for n in (0, 1))
    here, there = (list(itertools.chain.from_iterable(loader)) for loader in loaders)
    assert [item["key"] for item in here] == [data.keys[i] for batch in order for i in batch]
    for mine, other in zip(here, there, strict=True):
        assert mine["key"] == other["key"] and mine["x0"].shape == (3, 5, 32, 48)
        assert torch.equal(mine["x0"], other["x0"]) and torch.equal(mine["flow"], other["flow"])


# --- the order of drawing ------------------------------------------------------------------------------------------


@given(st.integers(0, 5), st.integers(1, 17), st.integers(1, 40), st.integers(0, 3))
def test_each_epoch_sees_each_clip_once(seed, batch, n, epoch):
    """Batches straddle epochs; in the stream of drawn clips no one is repeated or skipped."""
    first, last = epoch * n, (epoch + 1) * n
    drawn = []
    for step in range(first // batch, -(-last // batch)):
        drawn += clips.draw(seed, step, batch, n)
    begin = first - first // batch * batch
    assert sorted(drawn[begin : begin + n]) == list(range(n))


def test_the_order_is_a_function_of_seed_and_step_alone():
    whole = [clips.draw(3, step, 4, 10) for step in range(12)]
    clips.permutation.cache_clear()
    assert [clips.draw(3, step, 4, 10) for step in range(7, 12)] == whole[7:]  # a resume
    assert whole != [clips.draw(4, step, 4, 10) for step in range(12)]
    stream = [i for batch in whole for i in batch]
    assert stream[:10] != stream[10:20]  # another order in the next epoch
    assert [i for step in range(24) for i in clips.draw(3, step, 2, 10)] == stream  # other batches, same stream


@given(st.integers(0, 5), st.integers(0, 9), st.integers(1, 9), st.integers(1, 40))
def test_what_is_drawn_is_what_all_steps_draw(seed, steps, batch, n):
    seen = {i for step in range(steps) for i in clips.draw(seed, step, batch, n)}
    assert clips.drawn(seed, steps, batch, n) == sorted(seen)


def test_the_papers_draws_are_checked_quickly():
    """4,000 steps of 32 of 366,000 clips: a third, known before the first step."""
    started = time.process_time()
    assert len(clips.drawn(0, 4000, 32, 366_000)) == 128_000
    assert time.process_time() - started < 2
    assert clips.drawn(0, 4000, 32, 0) == []


def test_the_order_is_pinned():
    """Fixed for good: a resumed training must not see another order after an update of a library."""
    assert clips.permutation(0, 0, 10).tolist() == ORDER
    assert clips.streams(0, 7, ["a", "b"]).tolist() == STREAMS


def test_places_are_evenly_spread():
    where = np.zeros((5, 5))
    for epoch in range(2000):
        where[np.arange(5), clips.permutation(1, epoch, 5)] += 1
    assert np.abs(where / 400 - 1).max() < 0.2  # 400 each; 0.2 is more than 4 standard deviations


def test_a_big_order_is_quick_and_small():
    started = time.process_time()
    order = clips.permutation(0, 0, 366_000)
    assert time.process_time() - started < 2
    assert order.nbytes == 4 * 366_000 and np.array_equal(np.sort(order), np.arange(366_000))


def test_nothing_to_draw_from_is_a_problem():
    with pytest.raises(Problem, match="no clips to draw from"):
        clips.draw(0, 0, 4, 0)


def test_streams_depend_on_seed_step_and_key_alone():
    both = clips.streams(0, 7, ["a", "b"])
    assert both.dtype == torch.int64 and (both >= 0).all()
    assert torch.equal(both, torch.cat([clips.streams(0, 7, ["a"]), clips.streams(0, 7, ["b"])]))
    others = [clips.streams(1, 7, ["a"]), clips.streams(0, 8, ["a"]), clips.streams(0, 71, ["a"])]
    assert len({int(x) for x in [*both, *others]}) == 5
