"""Codec motion vectors: known shifts, the physics world's exact flow, wrong twins, distances between sets."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr, wasserstein_distance

from moalign import config, manifest, video
from moalign.bench import codec
from moalign.bench.tables import METRICS
from moalign.errors import Problem
from moalign.manifest import Sample, Score
from moalign.stages import bench
from moalign.world import corrupt, physics, render


def texture(height, width, seed=0):
    """A smooth random picture, so that a block has one likeness only."""
    noise = np.random.default_rng(seed).uniform(0, 255, (height // 4 + 2, width // 4 + 2, 3)).astype(np.float32)
    return video.scale(noise[None], height, width)[0].clip(0, 255).astype(np.uint8)


def shifted(dx, dy, frames=8, side=96):
    """A window over a wide picture; what it shows moves by (dx, dy) a frame."""
    picture = texture(side + 8 * frames + 64, side + 8 * frames + 64)
    middle = 4 * frames
    at = [(middle - dy * number, middle - dx * number) for number in range(frames)]
    return np.stack([picture[top : top + side, left : left + side] for top, left in at])


def clips(count, collection=41):
    """Scene and seed of clips that no scale uses, and their simulations."""
    chosen = [physics.choose(collection, index) for index in range(count)]
    return chosen, [physics.simulate(*clip) for clip in chosen]


def true_motion(simulation):
    """Mean |flow| over all pixels and pairs of frames."""
    pairs = range(len(simulation.states) - 1)
    return np.mean([np.linalg.norm(render.flow(simulation, i, i + 1)[0], axis=-1).mean() for i in pairs])


def through_h264(frames):
    return video.read(video.encode(frames, 8), list(range(len(frames))))


# --- the vectors ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(2, 0), (0, 3), (-3, 1), (-1, -2)])
def test_a_shift_has_its_length_and_direction(shift):
    field = codec.vectors(shifted(*shift))
    assert field.shape == (7, 96, 96, 2)
    inner = field[:, 16:-16, 16:-16].reshape(-1, 2)
    assert np.median(inner, axis=0) == pytest.approx(shift, abs=0.25)
    assert codec.measure(shifted(*shift))["codec_motion"] == pytest.approx(np.hypot(*shift), rel=0.1)
    assert codec.measure(shifted(*shift))["codec_moving"] > 0.9


def test_only_what_moves_moves():
    frames = np.repeat(texture(96, 96)[None], 8, axis=0)
    for number, frame in enumerate(frames):
        frame[32:64, 16 + 3 * number : 48 + 3 * number] = texture(32, 32, seed=1)
    field = np.linalg.norm(codec.vectors(frames), axis=-1)
    assert field[:, 80:].max() == 0
    assert field[:, 32:64].mean() > 1


@pytest.mark.parametrize("side", [64, 63, 50])
def test_still_frames_have_no_motion(side):
    still = np.repeat(texture(side, side)[None], 9, axis=0)
    assert codec.measure(still) == {"codec_motion": 0, "codec_moving": 0, "codec_jerk": 0}


def test_still_frames_of_a_file_have_next_to_none():
    for seed in range(5):
        still = codec.measure(through_h264(np.repeat(texture(64, 64, seed)[None], 9, axis=0)))
        assert still["codec_motion"] < 0.01
        assert still["codec_moving"] < 0.01


def test_even_motion_has_no_jerk_and_a_jump_has():
    even = codec.measure(shifted(2, 0))["codec_jerk"]
    frames = np.concatenate([shifted(2, 0), shifted(-2, 0)])
    assert even < 0.2 < codec.measure(frames)["codec_jerk"]


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_too_few_frames_have_no_number(frames):
    assert codec.measure(shifted(2, 0, frames)) == {}


def test_equal_frames_give_equal_numbers():
    assert codec.measure(shifted(3, 1)) == codec.measure(shifted(3, 1))


def test_the_files_encoder_hardly_matters():
    frames = render.draw(physics.simulate("throw", 5))
    values = [
        codec.measure(video.read(video.encode(frames, 8, crf), list(range(len(frames)))))["codec_motion"]
        for crf in (4, 12, 24)
    ]
    assert max(values) < 1.5 * min(values)


# --- against true motion ----------------------------------------------------------------------------------------------


def test_codec_motion_follows_true_motion():
    """Spearman's rho over 120 clips of two collections: 0.82 and 0.92 after H.264, 0.87 and 0.94 without."""
    _, simulations = clips(36)
    true = [true_motion(simulation) for simulation in simulations]
    found = [codec.measure(through_h264(render.draw(simulation)))["codec_motion"] for simulation in simulations]
    assert spearmanr(found, true).statistic > 0.6


def test_jerk_finds_uneven_time():
    """Most clips whose time runs unevenly have more jerk than the same clip running right."""
    chosen, simulations = clips(24)
    higher = [
        codec.measure(render.draw(corrupt.twin(*clip, "jitter")))["codec_jerk"]
        > codec.measure(render.draw(simulation))["codec_jerk"]
        for clip, simulation in zip(chosen, simulations, strict=True)
    ]
    assert np.mean(higher) > 0.75


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pin():
    """Pin of a bench that asks this rater alone."""
    params = config.load(Path(__file__).parents[1] / "params.yaml", scale="smoke")
    made = config.pin(params, "bench", run="cog-base", seed=0, bench="physics")
    return made.model_copy(update={"bench": made.bench.model_copy(update={"raters": ("codec",), "rules": None})})


def rate(folder, pin, lengths):
    """Scores of videos of these many frames."""
    (folder / "prompts.txt").write_text("".join(f"ball {number}\n" for number in range(len(lengths))))
    asked = pin.bench.model_copy(update={"prompts": str(folder / "prompts.txt"), "videos": 1})
    (folder / "pin.yaml").write_text(config.dump(pin.model_copy(update={"bench": asked})))
    with manifest.making(folder / "samples.jsonl", Sample, pin=folder / "pin.yaml") as made:
        for number, length in enumerate(lengths):
            if not (folder / f"{number}.mp4").exists():
                video.write(folder / f"{number}.mp4", shifted(1, number, length), 8)
            text = f"ball {number}"
            made.rows.append(Sample(number, text, text, 0, 7, f"{number}.mp4", 8.0, length))
    bench.run(folder / "pin.yaml", [folder / "samples.jsonl"], folder / "work", folder / "scores.jsonl")
    return manifest.read(folder / "scores.jsonl", Score)


def test_the_stage_rates_and_lists_what_is_too_short(tmp_path, pin):
    made = rate(tmp_path, pin, [9, 1, 9])
    assert {row.prompt_id for row in made.rows} == {0, 2}
    assert made.header.notes["without_number"] == {"codec": [[1, 0]]}
    for metric in codec.RULES:
        assert [row.value for row in made.rows if row.metric == metric and row.rater == "codec"]
        assert METRICS[metric].label.endswith("(diagnostic)")


def test_a_broken_file_stops_the_rating(tmp_path, pin):
    (tmp_path / "1.mp4").write_bytes(b"no video")
    with pytest.raises(Problem, match=r"prompt 1, video 0.*not a video"):
        rate(tmp_path, pin, [9, 9])
    assert not (tmp_path / "scores.jsonl").exists()


# --- sets -------------------------------------------------------------------------------------------------------------


def test_distances_between_sets():
    rng = np.random.default_rng(3)
    real = {"codec_motion": rng.normal(2, 1, 80)}
    same = codec.compare({"codec_motion": rng.normal(2, 1, 80)}, real)["codec_motion"]
    far = {"codec_motion": rng.normal(4, 1, 60)}
    found = codec.compare(far, real)["codec_motion"]
    assert same.value < same.chance
    assert found.low < found.value < found.high
    assert found.value == wasserstein_distance(far["codec_motion"], real["codec_motion"])
    assert found.low > found.chance
    assert codec.compare({"codec_motion": far["codec_motion"][::-1]}, real)["codec_motion"] == found


def test_a_shift_is_its_own_distance():
    real = np.linspace(0, 1, 20)
    assert codec.compare({"a": real + 3}, {"a": real})["a"].value == pytest.approx(3)
    assert codec.compare({"a": real}, {"a": real})["a"].value == 0


@pytest.mark.parametrize(
    ("samples", "real"),
    [({"a": []}, {"a": [1.0]}), ({"a": [np.nan]}, {"a": [1.0]}), ({"a": [1.0]}, {"a": [1.0], "b": [2.0]})],
)
def test_sets_that_cannot_be_compared_are_refused(samples, real):
    with pytest.raises(Problem, match="codec"):
        codec.compare(samples, real)
