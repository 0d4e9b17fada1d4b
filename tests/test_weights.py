"""`moalign weights check` on real folders: the shipped small models, copied, put into a hub cache, cut and changed.

No test may reach for the network: a socket that connects fails it.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from moalign import cli, config
from moalign.backbones import PARTS, loading
from moalign.errors import Problem
from moalign.stages import weights

TOP = Path(__file__).parents[1]
COMMIT, OTHER = "0123456789abcdef0123456789abcdef01234567", "f" * 40
HUB = "acme/small"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the check reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Site:
    """A folder with params.yaml, resources/weights.yaml and the shipped models, all right at first."""

    def __init__(self, top: Path, capsys: pytest.CaptureFixture):
        self.top, self.capsys = top, capsys
        self.models = top / "models"
        shutil.copytree(TOP / "resources" / "miniature", self.models)
        (top / "resources").mkdir()
        self.rows({})
        raw = yaml.safe_load(config.dump(config.load(TOP / "params.yaml", scale="miniature")))
        self.raw = raw | {"scale": "paper"}  # nothing is merged over it
        for family in ("cogvideox", "wan"):
            self.raw["backbones"][family]["weights"] = str(self.models / family)
        found = json.loads((self.models / "cogvideox/transformer/config.json").read_text())
        self.raw["backbones"]["cogvideox"]["text_tokens"] = found["max_text_seq_length"]
        self.raw["encoder"]["weights"] = str(self.models / "videomae/videomae.pth")
        self.raw["flow"]["weights"] = str(self.models / "raft/raft_small.pth")

    def rows(self, rows: dict) -> None:
        """The registry."""
        (self.top / "resources" / "weights.yaml").write_text(yaml.safe_dump(rows))

    def row(self, files: dict, **changes) -> dict:
        """A row of the hub name."""
        return {
            "role": "base model",
            "keys": ["backbones.cogvideox.weights"],
            "hub": HUB,
            "revision": COMMIT,
            "bytes": 13_000_000,
            "files": files,
            "licence": "MIT",
            "fetch": f"hf download {HUB} --revision {{revision}}",
            **changes,
        }

    def cached(self, cache: Path, commit: str = COMMIT) -> Path:
        """cogvideox as the hub's client leaves it: blobs by hash, links to them in a snapshot, a ref to its commit."""
        place = cache / "models--acme--small"
        (place / "blobs").mkdir(parents=True)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
        for path in sorted((self.models / "cogvideox").rglob("*")):
            if path.is_file() and path.name not in ("SHA256SUMS", "card.json"):
                blob = place / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
                shutil.copy(path, blob)
                link = place / "snapshots" / commit / path.relative_to(self.models / "cogvideox")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(os.path.relpath(blob, link.parent))
        self.raw["backbones"]["cogvideox"]["weights"] = HUB
        return place / "snapshots" / commit

    def check(self, *flags: str) -> tuple[int, str]:
        """Exit status of the command, and what it said."""
        (self.top / "params.yaml").write_text(yaml.safe_dump(self.raw, allow_unicode=True))
        status = cli.main(["weights", "check", "--params", str(self.top / "params.yaml"), *flags])
        said = self.capsys.readouterr()
        return status, said.out + said.err

    def differs(self, *says: str, flags: tuple[str, ...] = ()) -> str:
        """The report, in which one checkpoint of four differs, and says so in these words."""
        status, out = self.check(*flags)
        assert (status, "3 present, 1 different, 0 missing" in out) == (1, True), out
        assert all(text in out for text in says), out
        return out


@pytest.fixture
def site(tmp_path, capsys) -> Site:
    return Site(tmp_path, capsys)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path, at: int = -1000) -> None:
    """Change one byte, in place."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def unsummed(folder: Path) -> Path:
    """The folder, without the hashes of its maker."""
    (folder / "SHA256SUMS").unlink()
    return folder


# --- the registry --------------------------------------------------------------------------------------------------


def test_every_row_is_well_formed(monkeypatch):
    rows = weights._rows(TOP / weights.REGISTRY, weights.Checkpoint)
    asked = {}
    monkeypatch.setattr(loading, "snapshot_download", lambda name, **options: asked.update(options) or name)
    loading.find(HUB, PARTS)
    for name, row in rows.items():
        assert Path(row.hub or name).name == name
        assert row.files and row.licence and row.keys
        assert ("{revision}" in row.fetch) == (row.revision is not None)
        assert row.revision is None or re.fullmatch("[0-9a-f]{40}", row.revision)
        if row.hub:
            assert list(row.include) == asked["allow_patterns"]  # what the loaders read, and nothing else
            assert row.fetch.startswith(f"hf download {row.hub} ")
            assert all(f'--include "{pattern}"' in row.fetch for pattern in row.include)
        else:
            assert list(row.files) == [name]
            assert " -o {to} " in row.fetch and row.fetch.endswith(name)
        sizes = [file.bytes for file in row.files.values()]
        if None not in sizes:
            assert sum(sizes) == row.bytes
        assert all(file.sha256 is None or len(file.sha256) == 64 for file in row.files.values())
        digits = weights.DIGITS.search(name)
        assert digits is None or row.files[name].sha256.startswith(digits[1])


def test_all_that_the_paper_needs_has_a_row():
    rows = weights._rows(TOP / weights.REGISTRY, weights.Checkpoint)
    params = config.load(TOP / "params.yaml", scale="paper")
    used = weights.uses(params)
    assert {use.key for use in used} == {
        *(f"backbones.{name}.weights" for name in params.backbones),
        "encoder.weights",
        "flow.weights",
    }
    for use in used:
        assert use.key in rows[use.name].keys
        assert not use.hub or rows[use.name].hub == use.weights


def test_a_row_with_a_mistake_is_a_problem(site):
    site.rows({"small": site.row({}, license="MIT")})
    (site.top / "params.yaml").write_text(yaml.safe_dump(site.raw))
    with pytest.raises(Problem, match=r"weights.yaml: license: unknown key; did you mean 'licence'"):
        weights.check(str(site.top / "params.yaml"))


# --- folders -------------------------------------------------------------------------------------------------------


def test_the_shipped_models_are_right_by_their_own_sums(site):
    status, out = site.check()
    assert status == 0, out
    assert "4 present, 0 different, 0 missing" in out
    flip(site.models / "wan" / "vae" / "diffusion_pytorch_model.safetensors")
    site.differs("- vae/diffusion_pytorch_model.safetensors: sha256 ", "and SHA256SUMS says ")


@pytest.mark.parametrize("sound", ["transformer", "text_encoder"])
def test_a_cut_safetensors_file(site, sound):
    path = next((unsummed(site.models / "cogvideox") / sound).glob("*.safetensors"))
    os.truncate(path, path.stat().st_size - 1)
    site.differs(f"- {sound}/{path.name}: cut or damaged")


def test_the_class_and_the_blocks_of_a_config(site):
    path = unsummed(site.models / "cogvideox") / "transformer" / "config.json"
    edit(path, num_layers=7)
    site.differs("num_layers is 7, but the backbone's `blocks` in params.yaml is 6")
    edit(path, _class_name="WanTransformer3DModel")
    site.differs("holds a WanTransformer3DModel")


def test_a_part_without_weights_and_a_shard_that_is_not_there(site):
    folder = unsummed(site.models / "cogvideox")
    (folder / "text_encoder" / "model.safetensors").unlink()
    site.differs("- text_encoder: no weights")
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (folder / "text_encoder" / "model.safetensors.index.json").write_text(json.dumps(index))
    site.differs("- text_encoder/model-00001-of-00002.safetensors: missing")
    (folder / "text_encoder" / "model.safetensors.index.json").write_text("{")
    site.differs("- text_encoder/model.safetensors.index.json: cut or damaged")


def test_a_torn_pth_and_one_of_another_model(site):
    path = unsummed(site.models / "raft") / "raft_small.pth"
    whole = path.read_bytes()
    flip(path, len(whole) // 2)
    site.differs("- raft_small.pth: damaged at ")
    path.write_bytes(whole[: len(whole) // 2])
    site.differs("not a checkpoint of plain tensors")
    shutil.copy(site.models / "videomae" / "videomae.pth", path)
    site.differs("its weights are not those of a raft_small")


def test_the_digits_in_a_name(site):
    path = site.models / "raft" / "raft_small.pth"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    right, wrong = path.with_name(f"raft-{digest[:8]}.pth"), path.with_name("raft-01234567.pth")
    shutil.copy(path, right)
    shutil.copy(path, wrong)
    site.raw["flow"]["weights"] = str(right)
    assert site.check()[0] == 0
    site.raw["flow"]["weights"] = str(wrong)
    site.differs(f"raft-01234567.pth: sha256 {digest[:12]}, and its name says 01234567")


def test_sums_that_are_none(site):
    (site.models / "raft" / "SHA256SUMS").write_text("raft_small.pth\n")
    status, out = site.check()
    assert status == 2
    assert "SHA256SUMS: 'raft_small.pth' is not a sha256 and a file" in out


# --- the hub's cache -----------------------------------------------------------------------------------------------


def test_a_snapshot_in_the_cache(site, cache):
    name = "transformer/diffusion_pytorch_model.safetensors"
    snapshot = site.cached(cache)
    site.rows({"small": site.row({name: {"bytes": (snapshot / name).stat().st_size}})})
    status, out = site.check()
    assert status == 0, out
    assert str(snapshot) in out
    (snapshot / name).resolve().unlink()  # a dangling link is what an interrupted download leaves
    out = site.differs(f"- {name}: missing", "- transformer: no weights")
    assert f"hf download {HUB} --revision {COMMIT}" in out


def test_size_hash_and_files_of_the_registry(site, cache):
    name = "vae/diffusion_pytorch_model.safetensors"
    size = (site.cached(cache) / name).stat().st_size
    site.rows({"small": site.row({name: {"bytes": size + 1}})})
    site.differs(f"- {name}: {size} bytes, and resources/weights.yaml says {size + 1}", "--force-download")
    site.rows({"small": site.row({name: {"bytes": size, "sha256": "0" * 64}})})
    site.differs(f"- {name}: sha256 ", f"and resources/weights.yaml says {'0' * 64}")
    site.rows({"small": site.row({"tokenizer/spiece.model": {}})})
    out = site.differs("- tokenizer/spiece.model: missing")
    assert "--force-download" not in out  # what is there can stay


def test_another_commit_is_not_held_against_the_registry(site, cache):
    site.cached(cache, OTHER)
    site.rows({"small": site.row({"vae/diffusion_pytorch_model.safetensors": {"bytes": 1}})})
    site.differs("bytes, and resources/weights.yaml says 1")
    site.raw["backbones"]["cogvideox"]["revision"] = OTHER
    assert site.check()[0] == 0
    site.raw["backbones"]["cogvideox"]["revision"] = COMMIT  # which is not in the cache
    status, out = site.check()
    assert status == 1
    assert f"missing    {HUB}" in out


def test_what_is_missing_comes_with_its_command_licence_and_size(site, cache):
    site.raw["backbones"]["cogvideox"]["weights"] = HUB
    site.raw["flow"]["weights"] = str(site.top / "weights" / "raft.pth")
    site.rows(
        {
            "small": site.row({}, bytes=2_000_000_000),
            "raft.pth": site.row(
                {"raft.pth": {}}, hub=None, revision=None, bytes=21_106_607, fetch="curl -fL -o {to} URL"
            ),
        }
    )
    status, out = site.check()
    assert status == 1
    assert f"looked at {HUB} and the hub's cache, {cache}" in out
    hint = f"# and set backbones.cogvideox.revision: {COMMIT} in {site.top / 'params.yaml'}"
    assert f"fetch (MIT): hf download {HUB} --revision {COMMIT}  {hint}\n" in out
    assert f"fetch (MIT): curl -fL -o {site.top / 'weights' / 'raft.pth'} URL\n" in out
    assert "2 present, 0 different, 2 missing; 2.0 GB are needed on disk, 2.0 GB of them to fetch" in out
    site.raw["backbones"]["cogvideox"]["revision"] = OTHER
    assert f"fetch (MIT): hf download {HUB} --revision {OTHER}\n" in site.check()[1]
    site.raw["backbones"]["cogvideox"]["weights"] = "models/small"  # a folder that is still to be filled
    assert f"hf download {HUB} --revision {OTHER} --local-dir models/small\n" in site.check()[1]
    site.raw["backbones"]["cogvideox"]["weights"] = "acme/unknown"
    assert "has no row 'unknown'" in site.check()[1]


# --- the lock ------------------------------------------------------------------------------------------------------


def test_what_was_recorded_is_compared(site, cache):
    name = "transformer/diffusion_pytorch_model.safetensors"
    snapshot = site.cached(cache)
    for folder in ("wan", "videomae", "raft"):
        unsummed(site.models / folder)
    assert site.check("--record")[0] == 0
    lock = yaml.safe_load((site.top / weights.LOCK).read_text())
    assert set(lock) == {
        HUB,
        *(str(site.models / file) for file in ("wan", "videomae/videomae.pth", "raft/raft_small.pth")),
    }
    assert lock[HUB]["revision"] == COMMIT
    path = snapshot / name
    assert lock[HUB]["files"][name] == {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert {file.split("/")[0] for file in lock[HUB]["files"]} == set(weights.FOLDERS)
    assert site.check()[0] == 0
    flip(path.resolve())
    site.differs(f"- {name}: sha256 ", f"and resources/weights.lock.yaml says {lock[HUB]['files'][name]['sha256']}")


def test_what_is_wrong_is_not_recorded(site):
    site.check("--record")
    before = (site.top / weights.LOCK).read_text()
    path = site.models / "videomae" / "videomae.pth"
    flip(path, 4000)
    site.differs("videomae.pth: sha256", flags=("--record",))
    assert (site.top / weights.LOCK).read_text() == before


def test_a_commit_that_was_not_recorded(site, cache):
    site.cached(cache)
    site.check("--record")
    shutil.rmtree(cache)
    site.cached(cache, OTHER)
    site.differs(f"- commit {OTHER}, and resources/weights.lock.yaml says {COMMIT}")


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_at_paper_scale_with_an_empty_cache(tmp_path):
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    command = [sys.executable, "-m", "moalign", "weights", "check", "--scale", "paper"]
    done = subprocess.run(command, cwd=TOP, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    missing = [line.split()[1] for line in lines if line.startswith("missing")]
    assert {"zai-org/CogVideoX-2b", "Wan-AI/Wan2.1-T2V-14B-Diffusers"} <= set(missing)
    assert sum("fetch (" in line for line in lines) == len(missing)
    assert str(tmp_path / "hub") in done.stdout
