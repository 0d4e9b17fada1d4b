"""`moalign trace`: from a cell to its files, with one link broken at a time."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from moalign import cli, config, manifest, video
from moalign.bench import latex, published, tables
from moalign.errors import Problem
from moalign.manifest import Clip, Latent, Sample, Score, Weights
from moalign.stages import study, trace

TOP = Path(__file__).parents[1]
ROWS = ["cog-base", "cog-ft", "cog-videorepa", "cog-moalign"]
RESULTS = Path("results/smoke")
BENCH = "physics"


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Clips, latents, trainings, videos and scores of four runs, each made from the one before; real pins."""
    top, before = tmp_path_factory.mktemp("trace"), os.getcwd()
    os.chdir(top)
    try:
        raw = config.load(TOP / "params.yaml", scale="smoke").model_dump()
        raw["tables"] = {"table1": {"title": "Comparison", "bench": BENCH, "rows": ROWS}}
        params = config.parse(raw)
        shutil.copy(TOP / "params.yaml", "params.yaml")
        shutil.copytree(TOP / "scales", "scales")
        for model in ("cogvideox", "raft"):
            shutil.copytree(TOP / "resources/miniature" / model, f"resources/miniature/{model}")
        prompts = Path("prompts.txt")
        prompts.write_text("a red ball falls\n")
        pin("report", params)
        clips, latents = RESULTS / "clips/real/0000.jsonl", RESULTS / "latents/cogvideox/real/0000.jsonl"
        with manifest.making(clips, Clip, pin=pin("subset", params)) as made:
            data(made, "0000.tar")
        with manifest.making(latents, Latent, pin("encode", params, backbone="cogvideox"), [clips]) as made:
            data(made, "0000.safetensors")
        for number, run in enumerate(ROWS):
            training = RESULTS / f"runs/{run}/s0/manifest.jsonl"
            trained = run != "cog-base"
            if trained:
                with manifest.making(training, Weights, pin("align", params, run=run, seed=0), [latents]) as made:
                    data(made, "transformer/weights.safetensors")
                    made.rows.append(Weights("transformer", "transformer", 12))
                    made.notes["wandb"] = f"{run}-id"
            sampled = RESULTS / params.samples(run, BENCH, 0)[0]
            given = [prompts, *([training] if trained else [])]
            with manifest.making(sampled, Sample, pin("sample", params, run=run, seed=0, bench=BENCH), given) as made:
                folder = sampled.parent / "0000"
                folder.mkdir()
                for prompt in range(3):
                    frames = np.full((5, 32, 32, 3), 40 * prompt + number, np.uint8)
                    video.write(folder / f"{prompt}.mp4", frames, 8)
                    made.file(f"0000/{prompt}.mp4")
                    made.rows.append(Sample(prompt, "p", "p", 0, 1000 + prompt, f"0000/{prompt}.mp4", 8.0, 5))
            rated = RESULTS / f"scores/{run}/s0/{BENCH}.jsonl"
            with manifest.making(rated, Score, pin("bench", params, run=run, seed=0, bench=BENCH), [sampled]) as made:
                for prompt in range(3):
                    for metric, value in (("SA", 4.0), ("PC", 3.0 + (prompt < number))):
                        made.rows.append(Score(prompt, 0, 1000 + prompt, metric, value, "r", f"rule of {metric}"))
        (RESULTS / "tables").mkdir()
        table = published.make_tables(RESULTS, params)[0]
        (RESULTS / "tables/table1.md").write_text(tables.markdown(table, params))
        (RESULTS / "tables/table1.tex").write_text(latex.latex(table, params))
        (RESULTS / "metrics.json").write_text(json.dumps({"tables": {"table1": tables.numbers(table)}}))
    finally:
        os.chdir(before)
    return top


def pin(stage, params, **names):
    """A job's pin where the workflow puts it."""
    stem = {"encode": "{backbone}", "align": "{run}-s{seed}"}.get(stage, "{run}-s{seed}-{bench}" if names else "")
    path = RESULTS / "pins" / (f"{stage}/{stem.format(**names)}.yaml" if names else f"{stage}.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config.dump(config.pin(params, stage, **names)))
    return path


def data(made, name):
    """A data file of a manifest."""
    path = made.path.parent / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(name.encode() * 9)
    made.file(name)


@pytest.fixture
def copy(chain, tmp_path, monkeypatch):
    """The chain in a folder that a test may break."""
    monkeypatch.chdir(shutil.copytree(chain, tmp_path / "copy"))
    return tmp_path / "copy"


def test_a_cell_leads_to_all_that_made_it(copy, capsys):
    assert trace.run("table1:moalign:joint", str(RESULTS)) == 0
    said = capsys.readouterr().out
    assert said.startswith("table1:cog-moalign:Joint  100.0 [")
    for words in (
        "scores/cog-moalign/s0/physics.jsonl",
        "noise seeds 1000, 1001, 1002",
        "checkpoint transformer/weights.safetensors",
        "wandb run cog-moalign-id",
        "latents/cogvideox/real/0000.jsonl",
        "clips/real/0000.jsonl",
        "resources/miniature/cogvideox  SHA256SUMS",
        "align.steps: 12, in the paper 4000  (align)",
        f"environment {manifest.sha256(TOP / 'requirements.lock')[:12]}",
        "7 manifests, 9 files: 0 wrong",
    ):
        assert words in said, words
    assert "cog-ft" not in said  # another row's


def test_every_cell_of_the_table_can_be_traced(copy, capsys):
    for run in ROWS:
        for metric in ("SA", "PC", "Joint"):
            assert trace.run(f"table1:{run}:{metric}", str(RESULTS)) == 0
    assert trace.run("table1", str(RESULTS)) == 0
    assert "13 manifests" in capsys.readouterr().out.splitlines()[-1]


SAMPLES = RESULTS / "samples/cog-moalign/s0/physics"
RUN = RESULTS / "runs/cog-moalign/s0"


@pytest.mark.parametrize(
    ("path", "change", "says"),
    [
        (SAMPLES / "0000/1.mp4", b"another video", "0000/1.mp4: other bytes than were written"),
        (RUN / "transformer/weights.safetensors", b"others", "weights.safetensors: other bytes than were written"),
        (SAMPLES / "0000/2.mp4", None, "0000/2.mp4: missing"),
        (RESULTS / "latents/cogvideox/real/0000.jsonl", None, "latents/cogvideox/real/0000.jsonl: no manifest"),
        (Path("prompts.txt"), b"another prompt\n", "prompts.txt: other bytes"),
        (RESULTS / "pins/align/cog-moalign-s0.yaml", b"stage: align\n", "which is no longer there"),
        (
            Path("resources/miniature/cogvideox/transformer/diffusion_pytorch_model.safetensors"),
            b"x",
            "diffusion_pytorch_model.safetensors: other bytes than resources/miniature/cogvideox/SHA256SUMS says",
        ),
    ],
    ids=["video", "checkpoint", "lost video", "lost manifest", "prompts", "pin", "model"],
)
def test_a_broken_link_is_reported(copy, capsys, path, change, says):
    path.unlink() if change is None else path.write_bytes(change)
    assert trace.run("table1:moalign:joint", str(RESULTS)) == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]
    assert any(says in line for line in wrong), wrong
    if "model" not in str(path) and "pins" not in str(path):
        assert len(wrong) == 1  # one line for one fault


def test_an_edited_manifest_is_reported(copy, capsys):
    path = SAMPLES / "0000.jsonl"
    path.write_text(path.read_text().replace('"seed": 1001', '"seed": 1009'))
    assert trace.run("table1:moalign:joint", str(RESULTS)) == 1
    assert (
        f"{path}: other bytes than {RESULTS}/scores/cog-moalign/s0/physics.jsonl was made from"
        in capsys.readouterr().out
    )


def test_numbers_that_were_edited_or_exchanged_are_reported(copy, capsys):
    """A score row, a cell of the table, metrics.json, two runs' scores, the base's video, the model's folder."""
    scores = {run: RESULTS / f"scores/{run}/s0/{BENCH}.jsonl" for run in ROWS}
    table, numbers = RESULTS / "tables/table1.md", RESULTS / "metrics.json"

    def wrong():
        assert trace.run("table1:moalign:joint", str(RESULTS)) == 1
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("wrong")]

    for path, old, new in (
        (scores["cog-moalign"], '"value": 4.0', '"value": 2.0'),
        (table, "| ", "| 1"),
        (numbers, "4.0", "4.5"),
    ):
        before = path.read_text()
        path.write_text(before.replace(old, new, 1))
        told = wrong()
        assert path == scores["cog-moalign"] or (len(told) == 1 and str(path) in told[0]), told
        assert any("not what the score rows" in line for line in told)
        path.write_text(before)
    ours, other = scores["cog-moalign"].read_bytes(), scores["cog-ft"].read_bytes()
    scores["cog-moalign"].write_bytes(other)
    assert any("another run's pin" in line for line in wrong())
    scores["cog-moalign"].write_bytes(ours)
    base = RESULTS / "samples/cog-base/s0/physics/0000/1.mp4"
    before = base.read_bytes()
    base.write_bytes(b"x")
    assert any(f"{base}: other bytes" in line for line in wrong())
    base.write_bytes(before)
    assert trace.run("table1:moalign:joint", str(RESULTS)) == 0
    capsys.readouterr()
    shutil.rmtree("resources")
    assert any("resources/miniature/cogvideox: missing" in line for line in wrong())


def test_the_study_s_table_can_be_traced(copy, capsys):
    given = [f"{run}={RESULTS}/samples/{run}/s0/{BENCH}/0000.jsonl" for run in ("cog-moalign", "cog-base")]
    given = [text if Path(text.partition("=")[2]).exists() else text.replace("/0000.jsonl", ".jsonl") for text in given]
    folder = str(RESULTS / "study")
    study.plan(given, folder, prompts=3, votes=2, raters=2)
    study.prepare(folder, given)
    study.simulate(folder)
    assert study.report(folder, f"{folder}/table6.md") == 0
    assert trace.run("table6", str(RESULTS)) == 0
    said = capsys.readouterr().out
    assert "votes of 2 raters; simulated" in said and "checkpoint transformer/weights.safetensors" in said
    table = Path(folder, "table6.json")
    before = table.read_text()
    numbers = json.loads(before)
    numbers["all"]["comparisons"][0]["share"] += 0.01
    table.write_text(json.dumps(numbers))
    assert trace.run("table6", str(RESULTS)) == 1 and "not what the votes say" in capsys.readouterr().out
    table.write_text(before)
    video_file = SAMPLES / "0000/1.mp4"
    video_file.write_bytes(b"x")
    assert trace.run("table6", str(RESULTS)) == 1 and f"{video_file}: other bytes" in capsys.readouterr().out
    with pytest.raises(Problem, match="attach"):
        trace.run("table6", str(RESULTS), bundle="b")


def test_what_is_not_there_is_named(copy):
    for cell, says in (
        ("table9", "no table 'table9'"),
        ("table1:cog-x", "no row 'cog-x'"),
        ("table1:moalign:beauty", "no metric 'beauty'"),
    ):
        with pytest.raises(Problem, match=says):
            trace.run(cell, str(RESULTS))
    with pytest.raises(Problem, match="takes results"):
        trace.run("table1", "results")
    assert cli.main(["trace", "table1:moalign:joint", "--results", str(RESULTS)]) == 0


def test_a_bundle_can_be_checked_by_others(copy):
    folders = [Path("one"), Path("two"), Path("three")]
    for folder in folders:
        assert trace.run("table1", str(RESULTS), bundle=str(folder), videos=folder.name == "three") == 0
    one, two, three = (
        {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in folders
    )
    assert one == two
    assert {"README.md", "SHA256SUMS", "results/smoke/tables/table1.md", "results/smoke/pins/report.yaml"} <= one.keys()
    assert "results/smoke/scores/cog-ft/s0/physics.jsonl" in one and not any(name.endswith(".mp4") for name in one)
    assert sum(name.endswith(".mp4") for name in three) == 3 * len(ROWS)
    for line in one["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(one[name]).hexdigest() == digest
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd="one", capture_output=True)
    assert done.returncode == 0
    with pytest.raises(Problem, match="not empty"):
        trace.run("table1", str(RESULTS), bundle="one")
