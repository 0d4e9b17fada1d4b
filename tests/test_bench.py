"""The rater "motion", the joining of scores, the tables and their primary contrast."""

import random
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.models.optical_flow import raft_small

from moalign import config, manifest, video
from moalign.bench import latex, motion, scores, tables
from moalign.errors import Problem
from moalign.manifest import Sample, Score
from moalign.stages import bench
from moalign.world import captions, physics, render

TOP = Path(__file__).parents[1]


def moving_square(frames=9, height=64, width=64, step=3, seed=0):
    """A textured square that walks to the right over a textured ground: uint8 [F, H, W, 3]."""
    rng = np.random.default_rng(seed)
    ground = cv2.resize(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8), (width, height))
    square = cv2.resize(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), (16, 16))
    clip = np.stack([ground] * frames)
    for index in range(frames):
        left = 4 + step * index
        clip[index, 20:36, left : left + 16] = square[:, : max(0, width - left)]
    return clip


def sample(path, prompt=0, index=0, frames=9, fps=8.0):
    return Sample(prompt, f"ball {prompt}", f"ball {prompt}", index, 7, path, fps, frames)


# --- flicker ----------------------------------------------------------------------------------------------------------


def plain_flicker(path):
    """VBench's temporal flickering as its text defines it, read with OpenCV as its evaluator does."""
    reader, frames = cv2.VideoCapture(str(path)), []
    while True:
        there, frame = reader.read()
        if not there:
            break
        frames.append(np.array(frame, dtype=np.float32))
    errors = [np.mean(cv2.absdiff(a, b)) for a, b in pairwise(frames)]
    return (255.0 - np.mean(np.array(errors)).item()) / 255.0


@pytest.mark.parametrize("crf", [0, 12, 40])
@pytest.mark.parametrize("size", [(64, 64), (62, 98), (480, 720)])
def test_flicker_has_the_digits_of_its_definition(tmp_path, crf, size):
    frames = moving_square(5, *size)
    frames[2] = np.random.default_rng(1).integers(0, 256, frames[2].shape)  # large sums, where float32 rounds
    path = tmp_path / "clip.mp4"
    video.write(path, frames, 8, crf=crf)
    assert motion.flicker(video.read(path, list(range(5)))) == plain_flicker(path)


@pytest.mark.parametrize("size", [(63, 65), (1, 1), (5, 300)])
def test_flicker_at_odd_sizes(size):
    frames = np.random.default_rng(2).integers(0, 256, (4, *size, 3), dtype=np.uint8)
    errors = [np.abs(frames[i].astype(int) - frames[i + 1].astype(int)).mean() for i in range(3)]
    assert motion.flicker(frames) == pytest.approx(1 - np.mean(errors) / 255, abs=1e-6)


def test_flicker_extremes():
    frames = np.zeros((3, 8, 8, 3), np.uint8)
    assert motion.flicker(frames) == 1.0
    frames[1] = 255
    assert motion.flicker(frames) == 0.0
    assert motion.flicker(frames[:1]) is None


# --- motion -----------------------------------------------------------------------------------------------------------


def constant_flow(pixels, share=1.0):
    """A flow network that says: the top `share` of the rows moves `pixels` to the right, of what it is given."""

    def flow_on(frames):
        flow = torch.zeros(len(frames) - 1, 2, *frames.shape[-2:])
        flow[:, 0, : round(share * frames.shape[-2])] = pixels
        return flow

    return flow_on


@pytest.mark.parametrize(
    ("pixels", "frames", "dynamic"),
    [
        (3.1, 17, 1),  # threshold at 128: 6 * 128 / 256 = 3 pixels
        (2.9, 17, 0),
        (3.0, 17, 0),  # strictly above
        (0.0, 2, 1),  # round(4 * 2 / 16) = 0: no pair needs to move
        (0.0, 3, 0),  # round(0.75) = 1
    ],
)
def test_dynamic_degree_at_its_threshold(pixels, frames, dynamic):
    clip = np.zeros((frames, 64, 64, 3), np.uint8)
    assert motion.movement(clip, 8.0, constant_flow(pixels), (128, 128))["dynamic"] == dynamic


@pytest.mark.parametrize(("frames", "needed"), [(2, 0), (3, 1), (6, 2), (10, 2), (14, 4), (16, 4), (17, 4), (49, 12)])
def test_dynamic_degree_counts_half_to_even(frames, needed):
    still, moves = 5.9, 6.1
    for moving in range(frames):
        pairs = [moves] * moving + [still] * (frames - 1 - moving)
        assert motion.is_dynamic(random.Random(moving).sample(pairs, len(pairs)), 256, frames) == (moving >= needed)


def test_fastest_pixels_are_five_percent():
    speed = np.arange(1000, dtype=np.float32).reshape(20, 50)
    assert motion.mean_of_fastest(speed) == pytest.approx(np.arange(950, 1000).mean())
    assert motion.mean_of_fastest(np.random.default_rng(0).permutation(speed.ravel()).reshape(50, 20)) == 974.5


def test_mean_motion_does_not_depend_on_the_flow_size():
    clip = np.zeros((9, 64, 64, 3), np.uint8)
    small = motion.movement(clip, 8.0, constant_flow(2.0, 0.5), (128, 128))
    large = motion.movement(clip, 8.0, constant_flow(4.0, 0.5), (256, 256))
    assert small == large
    assert small["motion"] == pytest.approx(2.0)  # half the rows, 2 pixels of 128 = 4 of 256


def test_pairs_are_taken_at_eight_frames_per_second():
    seen = []

    def flow_on(frames):
        seen.append(len(frames) - 1)
        return torch.zeros(len(frames) - 1, 2, *frames.shape[-2:])

    for fps in (4.0, 8.0, 16.0, 24.0):
        motion.movement(np.zeros((17, 64, 64, 3), np.uint8), fps, flow_on, (128, 128))
    assert seen == [16, 16, 8, 5]


def test_the_flow_keeps_the_video_s_aspect():
    assert motion.flow_size((480, 720), (128, 192)) == (128, 192)
    assert motion.flow_size((480, 832), (128, 192)) == (128, 224)
    assert motion.flow_size((64, 64), (128, 128)) == (128, 128)
    assert motion.flow_size((90, 60), (128, 128)) == (192, 128)


def test_near_still():
    clip = np.zeros((9, 64, 64, 3), np.uint8)
    assert motion.movement(clip, 8.0, constant_flow(0.49), (128, 128))["still"] == 1
    assert motion.movement(clip, 8.0, constant_flow(0.51), (128, 128))["still"] == 0


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The pin of one bench of the smoke scale, with an untrained RAFT: raters physics and motion."""
    torch.manual_seed(0)
    weights = tmp_path_factory.mktemp("raft") / "raft_small.pth"
    torch.save(raft_small(weights=None).state_dict(), weights)
    pin = config.pin(config.load(TOP / "params.yaml", scale="smoke"), "bench", run="cog-base", seed=0, bench="physics")
    flow = pin.flow.model_copy(update={"weights": str(weights), "updates": 2})
    rated = pin.bench.model_copy(update={"rules": str(TOP / "resources/judge.json")})
    return pin.model_copy(update={"flow": flow, "bench": rated})


@pytest.fixture
def folder(tmp_path, both):
    """A folder for a rating by the rater "motion" alone."""
    alone = both.bench.model_copy(update={"raters": ("motion",), "rules": None})
    ask(tmp_path, both.model_copy(update={"bench": alone}), [])
    return tmp_path


def ask(folder, pin, texts):
    """The pin at folder/pin.yaml, for these prompts."""
    (folder / "prompts.txt").write_text("\n".join(texts) + "\n")
    bench = pin.bench.model_copy(update={"prompts": str(folder / "prompts.txt"), "videos": 1})
    (folder / "pin.yaml").write_text(config.dump(pin.model_copy(update={"bench": bench})))


def write_samples(folder, rows, frames=9):
    """A Sample manifest with a small video per row, at folder/samples.jsonl; a prompt for each row."""
    (folder / "prompts.txt").write_text("".join(f"ball {number}\n" for number in range(len(rows))))
    with manifest.making(folder / "samples.jsonl", Sample, pin=folder / "pin.yaml") as made:
        for row in rows:
            video.write(folder / row.file, moving_square(frames, seed=row.prompt_id), 8)
            made.rows.append(row)


def rate(folder):
    bench.run(folder / "pin.yaml", [folder / "samples.jsonl"], folder / "work", folder / "scores.jsonl")
    return manifest.read(folder / "scores.jsonl", Score)


def test_stage_rates_every_video(folder):
    write_samples(folder, [sample(f"{prompt}.mp4", prompt) for prompt in range(3)])
    made = rate(folder)
    assert {row.metric for row in made.rows} == set(motion.RULES)
    assert len(made.rows) == 12
    assert made.header.counts == {"videos": 3, "without a number": 0}
    for row in made.rows:
        if row.metric == "flicker":
            assert row.value == plain_flicker(folder / f"{row.prompt_id}.mp4")
    assert rate(folder).rows == made.rows


def test_a_single_frame_gets_no_number_and_is_listed(folder):
    write_samples(folder, [sample("0.mp4", 0)])
    video.write(folder / "1.mp4", moving_square(1), 8)
    (folder / "prompts.txt").write_text("ball 0\nball 1\n")
    with manifest.making(folder / "samples.jsonl", Sample, pin=folder / "pin.yaml") as made:
        made.rows += [sample("0.mp4", 0), sample("1.mp4", 1, frames=1)]
    found = rate(folder)
    assert {row.prompt_id for row in found.rows} == {0}
    assert found.header.notes["without_number"] == {"motion": [[1, 0]]}
    values = {0: scores.by_key(found.rows, "flicker")}
    summary = scores.summarise("flicker", values, [(0, 0), (1, 0)])
    assert (summary.mean, summary.n, summary.missing) == (None, 1, ((0, (1, 0)),))


def test_every_fault_is_named_and_nothing_is_rated(folder):
    rows = [sample(f"{prompt}.mp4", prompt) for prompt in range(5)]
    write_samples(folder, [*rows, sample("5.mp4", 6)])
    (folder / "0.mp4").unlink()
    (folder / "1.mp4").write_bytes(b"not a video")
    (folder / "2.mp4").write_bytes((folder / "3.mp4").read_bytes()[:700])
    video.write(folder / "3.mp4", moving_square(5), 8)
    with manifest.making(folder / "samples.jsonl", Sample, pin=folder / "pin.yaml") as made:
        made.rows += [*rows, sample("5.mp4", 6), sample("4.mp4", 4)]
    prompts = folder / "prompts.txt"
    prompts.write_text(prompts.read_text().replace("ball 2", "box 2"))
    with pytest.raises(Problem) as caught:
        rate(folder)
    text = str(caught.value)
    for fault in (
        "prompt 0, video 0: ",
        "prompt 1, video 0: ",
        "prompt 2, video 0: ",
        "3.mp4 holds 5 frames, 9 were sampled",
        "prompt 4, video 0: listed twice",
        "prompt 5, video 0: not sampled",
        "prompt 6, video 0: not asked for",
        "prompt 2, video 0: sampled for another prompt, 'ball 2'",
    ):
        assert fault in text
    assert not (folder / "scores.jsonl").exists()


def test_frames_that_do_not_decode_stop_the_rating(folder):
    write_samples(folder, [sample("0.mp4", 0), sample("1.mp4", 1)])
    data = bytearray((folder / "1.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start : start + 4000] = bytes(len(data[start : start + 4000]))
    (folder / "1.mp4").write_bytes(data)
    with pytest.raises(Problem, match="prompt 1, video 0"):
        rate(folder)
    assert not (folder / "scores.jsonl").exists()


# --- the rater "physics" ----------------------------------------------------------------------------------------------


def write_world(folder, pin, clips):
    """A Sample manifest of (prompt, frames) pairs."""
    ask(folder, pin, [prompt for prompt, _ in clips])
    with manifest.making(folder / "samples.jsonl", Sample, pin=folder / "pin.yaml") as made:
        for number, (prompt, frames) in enumerate(clips):
            video.write(folder / f"{number}.mp4", frames, 8)
            made.rows.append(Sample(number, prompt, prompt, 0, 7, f"{number}.mp4", 8.0, len(frames)))


def true_clips(count):
    """Captions and frames of right physics, the scenes in turn."""
    for index in range(count):
        scene, seed = physics.choose(31, index)
        simulation = physics.simulate(scene, seed)
        yield captions.caption(simulation.attributes, seed), render.draw(simulation)


def test_the_judge_leaves_no_video_out(folder, both):
    clips = list(true_clips(6))
    clips[4] = clips[4][0], np.zeros((17, 64, 64, 3), np.uint8)
    clips[5] = clips[5][0], clips[5][1][:1]
    write_world(folder, both, clips)
    made = rate(folder)
    own, lawful, other = (scores.by_key(made.rows, metric) for metric in ("SA", "PC", "SA_other"))
    assert own.keys() == lawful.keys() == other.keys() == {(number, 0) for number in range(6)}
    assert made.header.counts == {"nothing found": 2, "videos": 6, "without a number": 1}
    for number in (4, 5):
        assert own[number, 0] == lawful[number, 0] == other[number, 0] == 1
    assert min(own[number, 0] for number in range(4)) >= 4 > max(other[number, 0] for number in range(4))
    joint = scores.by_key(scores.joint(made.rows), "Joint")
    assert joint == {key: float(own[key] >= 4 and lawful[key] >= 4) for key in own}
    assert made.header.notes["reference"].keys() == {"real", "static", "shuffled"}
    assert any(name.endswith("judge.json") for name in made.header.inputs)


def test_a_prompt_beyond_the_grammar_stops_the_rating(folder, both):
    clips = list(true_clips(3))
    clips[1] = "a dog runs", clips[1][1]
    write_world(folder, both, clips)
    with pytest.raises(Problem, match=re.escape("prompts.txt: not for the rater")) as caught:
        rate(folder)
    assert "line 2: 'a dog runs'" in str(caught.value) and "line 1" not in str(caught.value)
    assert not (folder / "scores.jsonl").exists()
    write_world(folder, both, clips[:1])
    with pytest.raises(Problem, match="two are needed"):
        rate(folder)


def test_the_judge_needs_its_rules_and_no_one_else_does():
    raw = config.load(TOP / "params.yaml", scale="smoke").model_dump()
    raw["benches"]["physics"]["rules"] = None
    with pytest.raises(Problem, match=re.escape("benches.physics.rules: missing")):
        config.parse(raw)
    raw["benches"]["physics"] |= {"raters": ["motion"], "rules": "resources/judge.json"}
    with pytest.raises(Problem, match=re.escape("benches.physics.rules: only")):
        config.parse(raw)


# --- beside every score of physics ------------------------------------------------------------------------------------


def test_joint_at_matched_motion():
    joint = {0: {(prompt, 0): float(prompt % 2) for prompt in range(9)}}
    motion = {0: {(prompt, 0): float(prompt) for prompt in range(9)}}
    *bins, mean = scores.at_motion(joint, motion, (2.0, 5.0))
    assert [(found.mean, found.n) for found in bins] == [(1 / 3, 3), (2 / 3, 3), (1 / 3, 3)]
    assert mean.mean == pytest.approx(4 / 9) and mean.low <= mean.mean <= mean.high
    *bins, mean = scores.at_motion(joint, motion, (0.0, 5.0))  # one, five and three videos
    assert [found.n for found in bins] == [1, 5, 3]
    assert mean.mean == pytest.approx(np.mean([found.mean for found in bins])) != pytest.approx(4 / 9)
    *bins, mean = scores.at_motion(joint, motion, (-1.0, 5.0))
    assert (bins[0].mean, bins[0].n, mean.mean) == (None, 0, None)
    twice = scores.at_motion({0: joint[0], 1: joint[0]}, {0: motion[0], 1: motion[0]}, (2.0, 5.0))
    assert [found.n for found in twice] == [6, 6, 6, 18]


def test_runs_are_paired_at_matched_motion():
    """A run that moves less and passes where it moves less: its gain is gone once motion is matched."""
    motion = {"base": {0: {(p, 0): float(p) for p in range(30)}}, "ours": {0: {(p, 0): p / 2 for p in range(30)}}}
    passes = {run: {0: {key: float(m <= 9.5) for key, m in of[0].items()}} for run, of in motion.items()}
    edges = (9.5, 12.5)
    matched = {run: scores.weighted(passes[run], motion[run], edges) for run in passes}
    for run, of_run in matched.items():
        *_, mean = scores.at_motion(passes[run], motion[run], edges)
        assert mean.mean == pytest.approx(np.mean(list(of_run[0].values()))) == pytest.approx(1 / 3)
    plain, at_motion = (
        scores.difference("laws", of["ours"], of["base"], passes["ours"][0]) for of in (passes, matched)
    )
    assert plain.mean == pytest.approx(1 / 3) and at_motion.mean == pytest.approx(0)
    assert scores.weighted(passes["ours"], motion["ours"], (9.5, 20.0)) == {0: {}}
    del motion["ours"][0][3, 0]
    assert (3, 0) not in scores.weighted(passes["ours"], motion["ours"], edges)[0]


def physics_results(folder, params, semantic):
    """Samples and scores of every row of the tables; the base's SA is `semantic`, a method's is always 4."""
    for run, name, seed in params.rows():
        (folder / "pin.yaml").write_text(config.dump(config.pin(params, "bench", run=run, seed=seed, bench=name)))
        where = f"{run}/s{seed}/{name}.jsonl"
        for shard, path in enumerate(params.samples(run, name, seed)):
            with manifest.making(folder / path, Sample, pin=folder / "pin.yaml") as made:
                made.rows += [] if shard else [sample("none.mp4", prompt) for prompt in range(9)]
        with manifest.making(folder / "scores" / where, Score, pin=folder / "pin.yaml") as made:
            still = params.runs[run].still_of
            for prompt in range(9):
                values = {
                    "SA": 4 if params.runs[run].method else semantic,
                    "PC": 5 if still else 4 - prompt % 3,
                    "SA_other": 2 + prompt % 2,
                    "motion": 0.01 if still else 1.0 + prompt,
                }
                made.rows += [Score(prompt, 0, 7, metric, value, "r", metric) for metric, value in values.items()]
            made.notes["reference"] = {"real": 4.9, "static": 5.0, "shuffled": 1.1}


@pytest.mark.parametrize(("scale", "semantic"), [("smoke", 2), ("smoke", 4), ("miniature", 2), ("miniature", 4)])
def test_tables_show_methods_only_where_the_base_passes(tmp_path, scale, semantic):
    params = config.load(TOP / "params.yaml", scale=scale)
    physics_results(tmp_path, params, semantic)
    table = tables.make_table(tmp_path, params, "table1")
    passed = semantic == 4
    assert table.gate.passed == passed and table.gate.base == "cog-base"
    assert list(table.rules) == ["SA", "SA_other", "PC", "Joint", "motion"]
    text = tables.markdown(table, params)
    assert table.gate.text() in text
    shown = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    bare = {run for run in table.rows if params.runs[run].method is None}
    assert shown == (set(table.rows) if passed or scale == "smoke" else bare)
    assert ("did not pass its gate" in text) != passed
    static = table.matched.rows["Joint"]["cog-static"]
    assert [found.n for found in static] == [9, 0, 0, 9] and static[-1].mean is None
    assert [found.n for found in table.matched.rows["Joint"]["cog-base"]] == [3, 3, 3, 9]
    assert ("Primary contrast" in text) == (passed or scale == "smoke")  # it compares methods
    other = tables.make_table(tmp_path, params, "table4")  # the base is no row of it
    assert other.gate == table.gate and other.matched.edges == table.matched.edges


# --- the primary contrast ---------------------------------------------------------------------------------------------


PAPER = {"cog-moalign": {"Joint": 24.9}, "cog-videorepa": {"Joint": 23.0}, "cog-base": {"Joint": 22.3, "PC": None}}


def primary_results(folder, params, gain):
    """Scores of every row; `cog-moalign` passes on `gain` prompts more than all others, which pass on every fifth."""
    for run, name, seed in params.rows():
        (folder / "pin.yaml").write_text(config.dump(config.pin(params, "bench", run=run, seed=seed, bench=name)))
        where = f"{run}/s{seed}/{name}.jsonl"
        for shard, path in enumerate(params.samples(run, name, seed)):
            with manifest.making(folder / path, Sample, pin=folder / "pin.yaml") as made:
                made.rows += [] if shard else [sample("none.mp4", prompt) for prompt in range(40)]
        with manifest.making(folder / "scores" / where, Score, pin=folder / "pin.yaml") as made:
            for prompt in range(40):
                passed = prompt % 5 == 0 or (run == "cog-moalign" and prompt % 5 == 1 and prompt < 5 * gain)
                made.rows += [Score(prompt, 0, 7, metric, 2 + 2 * passed, "r", metric) for metric in ("SA", "PC")]
                made.rows.append(Score(prompt, 0, 7, "motion", prompt % 7, "motion", "r"))


def test_the_primary_contrast_stands_below_its_table(tmp_path):
    params = config.load(TOP / "params.yaml", scale="paper")
    primary_results(tmp_path, params, 7)
    table = tables.make_table(tmp_path, params, "table1", PAPER)
    text = tables.markdown(table, params)
    assert table.primary.difference.mean == pytest.approx(7 / 40) and table.primary.published == 1.9
    assert table.primary.difference.p == pytest.approx(2 / 2**7)
    line = next(line for line in text.splitlines() if line.startswith("Primary contrast"))
    assert "Joint (%) of cog-moalign minus cog-videorepa: +17.5 [" in line
    assert "p = 0.016, not adjusted" in line and "one training" in line
    assert "The paper has +1.9: agrees. With 40 prompts, of which 17.5 %" in line
    verdicts = {run: cells["Joint"].verdict for run, cells in table.rows.items()}
    assert verdicts["cog-videorepa"] == "undecided" and verdicts["cog-moalign"] == "agrees"
    assert verdicts["cog-ft"] is None and table.rows["cog-moalign"]["PC"].verdict is None
    assert tables.make_table(tmp_path, params, "table4", PAPER).primary is None  # it is printed once
    assert tables.make_table(tmp_path, params, "table2").primary is None  # another bench


def test_methods_are_compared_with_the_paper_s_only_from_its_base(tmp_path):
    params = config.load(TOP / "params.yaml", scale="paper")
    primary_results(tmp_path, params, 7)
    for name in ("table1", "table4"):  # the second has the base as no row
        for joint, holds in ((22.3, True), (41.0, False)):  # ours passes on every fifth prompt
            table = tables.make_table(tmp_path, params, name, PAPER, {"Joint": joint})
            assert table.anchor.holds == holds and table.anchor.mean == pytest.approx(20.0)
            text = tables.markdown(table, params)
            assert table.anchor.text() in text and ("cannot be compared" in text) != holds
            if name == "table1":  # whose first row the paper has too
                assert table.rows["cog-moalign"]["Joint"].verdict == ("agrees" if holds else "not comparable")
                assert f"The paper has +1.9: {'agrees' if holds else 'not comparable'}." in text


def test_a_row_of_the_paper_that_nobody_ran_is_shown_as_such(tmp_path):
    params = config.load(TOP / "params.yaml", scale="paper")
    primary_results(tmp_path, params, 7)
    table = tables.make_table(tmp_path, params, "table1", PAPER | {"cog-repa": {"Joint": 22.3}})
    assert table.not_run == ("cog-repa",)
    assert "| `cog-repa` | not run | 0 |" in tables.markdown(table, params)
    assert "not run" in latex.latex(table, params)


def test_latex_compiles_and_prints_what_the_page_prints(tmp_path):
    params = config.load(TOP / "params.yaml", scale="paper")
    primary_results(tmp_path, params, 7)
    made = [tables.make_table(tmp_path, params, name, PAPER) for name in ("table1", "table4")]
    texts = [latex.latex(table, params) for table in made]
    assert all(text.count("{") == text.count("}") and "cog-no\\_motion" in texts[1] for text in texts)
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here (Debian: texlive-latex-recommended)")
    body = "\n".join(texts)
    head = r"\documentclass{article}\usepackage[margin=2cm]{geometry}\usepackage{booktabs,graphicx}\begin{document}"
    (tmp_path / "all.tex").write_text(f"{head}\n{body}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-2000:]


def test_the_primary_contrast_needs_every_video_and_its_metric(tmp_path):
    params = config.load(TOP / "params.yaml", scale="paper")
    primary_results(tmp_path, params, 0)
    path = tmp_path / "scores/cog-videorepa/s0/videophy2.jsonl"
    rows = manifest.read(path, Score).rows
    for left, says in ((rows[:-3], "incomplete"), (None, "not rated")):
        for run in params.tables["table1"].rows if left is None else ["cog-videorepa"]:
            path = tmp_path / f"scores/{run}/s0/videophy2.jsonl"
            with manifest.making(path, Score, pin=tmp_path / "pin.yaml") as made:
                made.rows += left or [row for row in rows if row.metric == "motion"]
        table = tables.make_table(tmp_path, params, "table1", PAPER)
        assert table.primary.difference is None
        assert f"minus cog-videorepa: {says}." in tables.markdown(table, params)


# --- scores -----------------------------------------------------------------------------------------------------------


def rows_of(metric, values):
    return [Score(prompt, index, 0, metric, value, "r", "") for (prompt, index), value in values.items()]


def test_scores_join_by_key_and_not_by_order():
    rng = np.random.default_rng(3)
    keys = [(prompt, index) for prompt in range(20) for index in range(2)]
    ours, base = (rows_of("PC", dict(zip(keys, rng.random(40), strict=True))) for _ in range(2))
    expected = scores.difference("PC", {0: scores.by_key(ours, "PC")}, {0: scores.by_key(base, "PC")}, keys)
    random.Random(0).shuffle(ours)
    random.Random(1).shuffle(base)
    shuffled = scores.difference("PC", {0: scores.by_key(ours, "PC")}, {0: scores.by_key(base, "PC")}, keys[::-1])
    assert shuffled == expected
    assert expected.low < expected.mean < expected.high


def test_joint_needs_both_and_joins_by_key():
    semantic = {(0, 0): 5, (1, 0): 4, (2, 0): 4, (3, 0): 5, (4, 0): 5}
    physical = {(3, 0): 3, (2, 0): 4, (1, 0): 3.9, (0, 0): 4}
    rows = rows_of("SA", semantic) + rows_of("PC", physical)
    assert scores.by_key(scores.joint(rows), "Joint") == {(0, 0): 1, (1, 0): 0, (2, 0): 1, (3, 0): 0}
    assert scores.by_key(scores.joint(rows[::-1]), "Joint") == scores.by_key(scores.joint(rows), "Joint")


def test_two_values_for_one_video_are_refused():
    rows = rows_of("PC", {(0, 0): 1.0}) * 2
    with pytest.raises(Problem, match="prompt 0, video 0"):
        scores.by_key(rows, "PC")


def test_summary_of_passes_and_of_values():
    passes = {(prompt, 0): float(prompt < 7) for prompt in range(20)}
    summary = scores.summarise("Joint", {0: passes}, passes)
    assert (summary.mean, summary.n) == (0.35, 20)
    assert (summary.low, summary.high) == pytest.approx(stats.binomtest(7, 20).proportion_ci(method="wilson"))
    still = scores.summarise("flicker", {0: dict.fromkeys(passes, 1.0)}, passes)
    assert (still.mean, still.low, still.high) == (1.0, 1.0, 1.0)


def test_trainings_pair_by_seed_and_a_base_meets_each():
    keys = [(prompt, 0) for prompt in range(30)]
    values = {seed: {key: key[0] + 10.0 * seed for key in keys} for seed in range(3)}
    higher = {seed: {key: value + 1 for key, value in row.items()} for seed, row in values.items()}
    paired = scores.difference("PC", higher, values, keys)
    assert (paired.mean, paired.low, paired.high) == pytest.approx((1, 1, 1))
    against_base = scores.difference("PC", values, {0: values[0]}, keys)
    assert against_base.mean == pytest.approx(10)
    assert against_base.low < 5 and against_base.high > 15  # the spread of the three trainings is in it
    with pytest.raises(Problem, match="seeds"):
        scores.difference("PC", {0: values[0], 1: values[1]}, {1: values[1], 2: values[2]}, keys)
