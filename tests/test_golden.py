"""Loss curves of two trainings, kept in git: whatever changes what stage 2 computes shows here, after twenty steps.

The small base goes on, with and without alignment, on a dozen clips of the world. Another processor rounds otherwise,
hence a tolerance; a change of noise, of order, of loss or of optimiser is far beyond it. Where a change is meant, bump
config.REVISIONS and record the new curves: `python tests/test_golden.py`.
"""

import json
import os
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from moalign import config, manifest
from moalign.stages import align, collect, encode, subset, targets
from moalign.teacher import motion

TOP = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
RUNS = ("cog-ft", "cog-moalign")
STEPS, CLIPS = 20, 12


def curves(folder: Path) -> dict[str, list[dict]]:
    """Run -> lines of its log: losses, gradient norms and both validations."""
    os.environ["WANDB_MODE"] = "disabled"
    torch.set_num_threads(1)
    raw = config.merge(config.read_yaml(TOP / "params.yaml"), config.read_yaml(TOP / "scales/miniature.yaml"))
    few = {
        "sources": {"footage": None, "world": {"clips": CLIPS + 4}},
        "subset": {"clips": CLIPS, "shard": CLIPS, "heldout": 0.2},
        "align": {"steps": STEPS, "batch": 4, "warmup": 5, "validate_every": STEPS, "save_every": STEPS},
    }
    params = config.parse(config.merge(raw, few))

    def pin(stage: str, **names) -> str:
        path = folder / "pins" / f"{stage}{''.join(f'-{name}' for name in names.values())}.yaml"
        manifest.write_text(path, config.dump(config.pin(params, stage, **names)))
        return str(path)

    source, clips = folder / "world/annotations.json", str(folder / "clips/0000.jsonl")
    collect.run(pin("collect", source="world"), str(source))
    subset.select(pin("subset"), {"world": str(source)}, str(folder / "selection.jsonl"))
    subset.ingest(pin("subset"), str(folder / "selection.jsonl"), {"world": str(source.parent)}, 0, clips)
    latents, moved = str(folder / "latents/0000.jsonl"), str(folder / "targets/0000.jsonl")
    encode.run(pin("encode", backbone="cogvideox"), clips, latents)
    targets.run(pin("targets", backbone="cogvideox", target="motion"), clips, moved, head(folder, params, pin))
    found = {}
    for run in RUNS:
        work, out = folder / "work" / run, folder / run / "manifest.jsonl"
        aligned = [moved] if run == "cog-moalign" else []
        align.run(pin("align", run=run, seed=0), [clips], [latents], str(work), str(out), aligned)
        found[run] = [json.loads(line) for line in (folder / run / "log.jsonl").read_text().splitlines()]
    return found


def head(folder: Path, params: config.Params, pin) -> str:
    """A stage-1 head as it is before its training, from a seed: what M is here."""
    torch.manual_seed(0)
    made_of = motion.MotionHead(params.encoder.width, params.teacher.channels)
    decoder = motion.FlowDecoder(params.teacher.channels[-1], params.teacher.decoder, params.flow.size)
    path = folder / "teacher/manifest.jsonl"
    with manifest.making(path, manifest.Weights, pin=pin("teacher")) as made:
        motion.save(path.parent / "teacher.safetensors", made_of, decoder)
        made.file("teacher.safetensors")
        made.rows.append(manifest.Weights("teacher", "teacher.safetensors", 0))
    return str(path)


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[dict]]:
    previous = Path.cwd()
    os.chdir(TOP)  # the small models' paths are relative
    yield curves(tmp_path_factory.mktemp("golden"))
    os.chdir(previous)


@pytest.mark.parametrize("run", RUNS)
def test_twenty_steps_are_what_they_were(found, run):
    golden = [json.loads(line) for line in (GOLDEN / f"{run}.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found[run]] == [line["step"] for line in golden]
    assert max(line["step"] for line in golden) == STEPS
    for line, expected in zip(found[run], golden, strict=True):
        assert line.keys() == expected.keys(), line["step"]
        assert line == pytest.approx(expected, rel=2e-3, abs=1e-5), line["step"]


def test_the_curves_tell_runs_and_steps_apart(found):
    """What the tolerance must not hide: another run, or the clips of another step."""
    ft, ours = ([line["denoise"] for line in found[run] if "denoise" in line and "loss" in line] for run in RUNS)
    assert len(ft) == STEPS
    assert ft[0] == pytest.approx(ours[0], rel=2e-3), "the first loss knows nothing of the method"
    assert any(a != pytest.approx(b, rel=2e-3) for a, b in zip(ft, ours, strict=True))
    assert all(a != pytest.approx(b, rel=2e-3) for a, b in pairwise(ft))


if __name__ == "__main__":
    os.chdir(TOP)
    with tempfile.TemporaryDirectory() as temporary:
        for name, log in curves(Path(temporary)).items():
            manifest.write_text(GOLDEN / f"{name}.jsonl", "".join(json.dumps(line) + "\n" for line in log))
            sys.stdout.write(f"recorded: {GOLDEN / name}.jsonl\n")
