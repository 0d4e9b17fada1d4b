"""`moalign doctor` in real states: a full disk, a missing weight, no scheduler, a remote that is not there.

What needs a scheduler is in test_slurm.py.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moalign import cli, config, sizes
from moalign.stages import doctor

TOP = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@pytest.fixture
def place(tmp_path):
    """A folder with the repo's parameters, profiles and models."""
    for name in ("params.yaml", "scales", "resources", "local", "slurm"):
        (tmp_path / name).symlink_to(TOP / name)
    return tmp_path


@pytest.fixture
def clone(place):
    """The same under DVC."""
    subprocess.run(["git", "init", "-q"], cwd=place, check=True)
    dvc(place, "init", "-q")
    return place


def dvc(folder: Path, *words: str) -> None:
    subprocess.run([BIN / "dvc", *words], cwd=folder, check=True, capture_output=True)


def site(folder: Path, scale: str = "smoke", profile: str = "local") -> doctor.Site:
    settings = yaml.safe_load((TOP / profile / "config.yaml").read_text())
    return doctor.Site(folder, config.load(TOP / "params.yaml", scale=scale), settings, profile)


def change(params: config.Params, **sections: dict) -> config.Params:
    return params.model_copy(
        update={name: getattr(params, name).model_copy(update=values) for name, values in sections.items()}
    )


def test_all_is_well_here(clone):
    command = [sys.executable, "-m", "moalign", "doctor", "--scale", "smoke"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.split()[1] for line in done.stdout.splitlines()[:-1]] == [
        *("params", "scheduler", "GPUs", "folders", "folders", "space", "weights", "remotes", "wandb"),
    ]
    assert all(line.startswith("ok ") for line in done.stdout.splitlines()[:-1])
    assert not list(clone.rglob(".doctor*"))


def test_a_mistake_in_the_parameters_is_the_first_problem(place, capsys):
    text = (TOP / "params.yaml").read_text().replace("lam: 0.5, tau: 10.0", "lam: 0.5, taw: 10.0")
    (place / "params.yaml").unlink()
    (place / "params.yaml").write_text(text)
    assert cli.main(["doctor", "--params", str(place / "params.yaml")]) == 1
    out = capsys.readouterr().out
    assert out.startswith("problem  params")
    assert "methods.moalign.taw: unknown key; did you mean 'tau'?" in out


def test_an_unknown_profile_is_a_problem(place, capsys):
    assert cli.main(["doctor", "--params", str(place / "params.yaml"), "--profile", "slum"]) == 1
    assert "slum/config.yaml: no such file" in capsys.readouterr().out


def test_no_scheduler(place, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    [(right, found, cure)] = doctor.scheduler(site(place, profile="slurm"))
    assert not right
    assert "sbatch is not on the PATH" in found
    assert "log in" in cure


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk(place):
    """A tmpfs of 1 MB, in a namespace of its own: smoke needs more, and the last byte of it is taken."""
    (place / "results").mkdir()
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[2]); import test_doctor as t;"
        "top = Path(sys.argv[1]); (top / 'results/full').write_bytes(b'0' * (1 << 20));"
        "[t.doctor.show('x', f) for c in (t.doctor.folders, t.doctor.space) for f in c(t.site(top))]"
    )
    mount = f"mount -t tmpfs -o size=1m tmpfs {place}/results"
    command = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "-", sys.executable, "-c", code]
    done = subprocess.run([*command, place, TOP / "tests"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^problem .*results: tmpfs: No space left on device", done.stdout, re.MULTILINE)
    assert re.search(r"^ok .*work: ", done.stdout, re.MULTILINE)
    assert re.search(r"^problem .*about \d+ MB .*0 MB of them there; 0 MB free", done.stdout, re.MULTILINE) or (
        re.search(r"^problem .*; 0 MB free", done.stdout, re.MULTILINE)
    )


def test_what_is_there_already_counts_as_room(place):
    here = site(place)
    free = shutil.disk_usage(place).free
    needs = doctor.bytes_needed(here.params, place)
    each = (needs["clips"] + needs["flow"]) // (here.params.subset.clips + here.params.synth.clips)
    large = change(here.params, subset={"clips": 2 * free // each})
    [(right, *_)] = doctor.space(doctor.Site(place, large, here.profile, "local"))
    assert not right
    (place / "work/smoke").mkdir(parents=True)
    with open(place / "work/smoke/checkpoint", "wb") as file:
        file.truncate(10 * free)  # sparse: its length counts
    [(right, *_)] = doctor.space(doctor.Site(place, large, here.profile, "local"))
    assert right


def test_the_paper_needs_terabytes_and_each_part_is_what_the_stage_writes():
    params = config.load(TOP / "params.yaml", scale="paper")
    needs = doctor.bytes_needed(params, TOP)
    assert 3e12 < sum(needs.values()) < 12e12
    clips = min(params.subset.clips + params.synth.clips, params.align.steps * params.align.batch)
    assert needs["targets motion of cogvideox"] == clips * 24 * 10 * 15 * 64 * 2
    assert needs["flow"] < 366_000 * 23 * 2 * 128 * 192 * 2
    assert abs(sizes.weights(params.backbones["cogvideox"]) / 1.69e9 - 1) < 0.1  # CogVideoX-2B's transformer
    assert abs(sizes.weights(params.backbones["wan-14b"]) / 14.0e9 - 1) < 0.2


def test_a_missing_weight(place):
    (place / "resources").unlink()
    shutil.copytree(TOP / "resources", place / "resources")
    (place / "resources/miniature/raft/raft_small.pth").unlink()
    here, before = site(place), Path.cwd()
    os.chdir(place)
    try:
        [(right, found, cure)] = doctor.weights(here)
    finally:
        os.chdir(before)
    assert not right
    assert "resources/miniature/raft/raft_small.pth" in found
    assert "moalign weights check --scale smoke" in cure


def test_remotes_that_can_and_cannot_be_reached(clone):
    dvc(clone, "remote", "add", "near", str(clone / "to-be-made/store"))
    dvc(clone, "remote", "add", "far", "ssh://127.0.0.1:1/store")
    found = {line.split(":")[0]: (right, line) for right, line, _ in doctor.remotes(site(clone))}
    assert found["near"][0]
    assert not found["far"][0]
    assert re.search("refused|Connect", found["far"][1])


def test_wandb_online_without_a_key(place, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    [(right, found, cure)] = doctor.wandb(site(place))
    assert not right
    assert "no key" in found
    assert "offline" in cure
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    [(right, found, _)] = doctor.wandb(site(place))
    assert not right
    assert "127.0.0.1 does not answer" in found


def test_a_gpu_is_asked_for_and_there_is_none(place, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    here = site(place)
    cuda = change(here.params, machine={"device": "cuda"})
    [(right, found, cure)] = doctor.gpus(doctor.Site(place, cuda, here.profile, "local"))
    assert not right
    assert "nvidia-smi" in found
    assert "machine.device: cpu" in cure


def test_requests_are_those_of_the_last_try():
    row = {"slurm_partition": "gpu", "gpu": 4, "gpu_model": "h100", "runtime": "60 * attempt", "mem_mb": 100}
    assert doctor.request(row, 3) == ("--partition=gpu", "--mem=100", "--time=180", "--gpus=h100:4")


@pytest.mark.gpu
def test_a_gpu_node(place):
    here = site(place)
    cuda = change(here.params, machine={"device": "cuda", "processes": 1})
    found = list(doctor.gpus(doctor.Site(place, cuda, here.profile, "local")))
    assert all(right for right, *_ in found), found
    assert re.search(r"NCCL 2\.\S+ adds up between 1 ranks", found[-1][1])
