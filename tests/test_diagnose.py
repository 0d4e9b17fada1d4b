"""Diagnostics of a set of videos beside real clips."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from moalign import manifest, shards, video
from moalign.bench import external
from moalign.errors import Problem
from moalign.manifest import Clip, Sample
from moalign.stages import diagnose

PIN = "stage: flow\nrevision: 1\nmachine: {device: cpu, threads: 1, processes: 1}\n"
F = 17


def moving(number: int, speed: int, frames: int = F) -> np.ndarray:
    """A textured square that moves over texture."""
    rng = np.random.default_rng(number)
    ground = rng.integers(90, 120, (64, 64, 3), dtype=np.uint8)
    patch = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    film = np.repeat(ground[None], frames, axis=0)
    for place in range(frames):
        left = min(4 + speed * place, 48)
        film[place, 20:36, left : left + 16] = patch
    return film


@pytest.fixture
def given(tmp_path):
    """8 samples, and 6 held-out clips beside one that was trained on."""
    (tmp_path / "pin.yaml").write_text(PIN)

    def sample(speed: int, name: str = "samples.jsonl", frames: int = F) -> str:
        with manifest.making(tmp_path / name, Sample, pin=tmp_path / "pin.yaml") as made:
            for number in range(8):
                video.write(tmp_path / f"{name}{number}.mp4", moving(number, speed, frames), 8)
                made.rows.append(Sample(number, "a", "a", 0, number, f"{name}{number}.mp4", 8.0, frames))
        return str(tmp_path / name)

    with manifest.making(tmp_path / "0000.jsonl", Clip, pin=tmp_path / "pin.yaml") as made:
        with shards.TarWriter(tmp_path / "0000.tar") as tar:
            for number in range(7):
                place = tar.add(f"{number}.mp4", video.encode(moving(100 + number, 2), 8))
                split = "heldout" if number else "train"
                made.rows.append(Clip(str(number), split, "mine", "a.mov", "a", "0000.tar", *place, F, 8.0, 64, 64))
        made.file("0000.tar")
    return sample, [str(tmp_path / "0000.jsonl")], tmp_path


def test_what_moves_as_the_real_clips_do_is_closer(given):
    sample, clips, folder = given
    found = {}
    for speed in (0, 2):
        diagnose.run([sample(speed)], clips, folder / "out.json")
        found[speed] = json.loads((folder / "out.json").read_text())
    assert found[2]["videos"] == 6 and (found[2]["frames"], found[2]["fps"]) == (F, 8.0)
    for metric in ("codec_motion", "codec_moving"):
        still, alike = found[0]["codec"][metric], found[2]["codec"][metric]
        assert alike["value"] < still["value"] and still["value"] > still["chance"]
        assert alike["value"] <= alike["chance"]
    assert found[0]["codec"]["codec_motion"]["samples"] < 0.01
    before = (folder / "out.json").read_bytes()
    diagnose.run([sample(2)], clips, folder / "out.json")
    assert (folder / "out.json").read_bytes() == before


def test_fvmd_gets_equal_sets_and_is_asked_once(given, monkeypatch):
    sample, clips, folder = given
    python = folder / "python"
    standin = Path(__file__).parent / "standin"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={standin} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setenv("STARTS", str(folder / "starts"))
    monkeypatch.setattr(external, "versions", lambda *asked: {"asked": list(asked[1:])})
    samples = sample(2)
    for _ in range(2):
        diagnose.run([samples], clips, folder / "out.json", fvmd=str(python), work=folder / "work")
    assert (folder / "starts").read_text().split() == ["fvmd"]
    assert json.loads((folder / "out.json").read_text())["fvmd"]["value"] == 6.0
    diagnose.run([sample(1)], clips, folder / "out.json", fvmd=str(python), work=folder / "work")
    assert (folder / "starts").read_text().split() == ["fvmd", "fvmd"]  # other videos, asked again
    with pytest.raises(Problem, match="--work: missing"):
        diagnose.run([sample(2)], clips, folder / "out.json", fvmd=str(python))


def test_what_cannot_be_compared_is_said(given):
    sample, clips, folder = given
    with pytest.raises(Problem, match="of 2 lengths or rates"):
        diagnose.run([sample(2), sample(2, "more.jsonl", 9)], clips, folder / "out.json")
    with pytest.raises(Problem, match="videos of 3 frames"):
        diagnose.run([sample(2, "short.jsonl", 3)], clips, folder / "out.json")
    text = Path(clips[0]).read_text().replace('"heldout"', '"train"')
    Path(clips[0]).write_text(text)
    with pytest.raises(Problem, match="no held-out clip"):
        diagnose.run([sample(2)], clips, folder / "out.json")
