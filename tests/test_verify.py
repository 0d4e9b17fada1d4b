"""`moalign data verify`: damage is found, and what it says to do makes again the damaged shard and what hangs on it."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from test_workflow import TOP, runs, snakemake, summary

from moalign import cli, manifest

KIND = {"clips": "Clip", "drawn": "Drawn", "flow": "Flow", "latents": "Latent", "targets": "Target"}
KIND |= {"teacher": "Weights", "runs": "Weights", "samples": "Sample", "scores": "Score"}


def write(path: Path, kind: str, rows: list[dict], files: dict[str, bytes]) -> None:
    """A manifest with its files, as `manifest.making` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    listed = {}
    for name, data in files.items():
        (path.parent / name).parent.mkdir(exist_ok=True)
        (path.parent / name).write_bytes(data)
        listed[name] = {"sha256": manifest.sha256(path.parent / name), "bytes": len(data)}
    head = {"manifest": kind, "rows": len(rows), "stage": "any", "revision": 1, "pin": "", "inputs": {}}
    head |= {"files": listed, "counts": {}, "code": "", "job": "local", "seconds": 0.0, "peak_mb": 1, "notes": {}}
    path.write_text("".join(json.dumps(line) + "\n" for line in (head, *rows)))


def shard(path: Path, clips: int = 3) -> Path:
    """A flow shard; its data file."""
    name = f"{path.stem}.safetensors"
    rows = [{"key": f"k{i}", "file": name, "index": i, "motion": 0.5} for i in range(clips)]
    write(path, "Flow", rows, {name: bytes(range(256)) * 40})
    return path.parent / name


@pytest.fixture
def results(tmp_path):
    top = tmp_path / "results/smoke"
    for number in range(4):
        shard(top / f"flow/real/{number:04d}.jsonl")
    files = {"transformer/config.json": b"{}", "log.jsonl": b'{"step": 1}\n'}
    rows = [{"name": "transformer", "file": "transformer", "step": 1}, {"name": "log", "file": "log.jsonl", "step": 1}]
    write(top / "runs/cog-ft/s0/manifest.jsonl", "Weights", rows, files)
    return top


def verify(top: Path, capsys) -> tuple[int, str]:
    status = cli.main(["data", "verify", "--results", str(top), "--jobs", "2"])
    return status, capsys.readouterr().out


def test_all_is_right(results, capsys):
    status, said = verify(results, capsys)
    assert status == 0
    assert said == "5 manifests, 6 files, 0.000 GB: 0 to make again, 0 that no manifest names\n"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip, r"0002\.safetensors: other bytes than were written"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "10239 bytes instead of 10240"),
        (Path.unlink, r"0002\.safetensors: missing"),
        (lambda path: cut(path.with_suffix(".jsonl")), "promises 3 rows and holds 2"),
        (lambda path: path.with_suffix(".jsonl").write_text("{}\n"), r"0002\.jsonl: no manifest"),
        (lambda path: path.with_suffix(".jsonl").write_bytes(b"\xff\xfe\n"), r"0002\.jsonl: no manifest"),
        (lambda path: rename(path.with_suffix(".jsonl")), "a row names other.safetensors, and the header does not"),
    ],
)
def test_damage_is_found_and_its_manifest_named(results, capsys, damage, says):
    damage(results / "flow/real/0002.safetensors")
    status, said = verify(results, capsys)
    assert status == 1
    assert re.search(says, said)
    assert re.findall(r"^rm -f (\S+)", said, re.MULTILINE) == [str(results / "flow/real/0002.jsonl")]


def cut(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def rename(path: Path) -> None:
    head, *rows = path.read_text().splitlines()
    path.write_text("\n".join([head, *(row.replace("0002.safe", "other.safe") for row in rows)]) + "\n")


def test_what_no_manifest_names_is_listed_and_is_no_damage(results, capsys):
    (results / "flow/real/.0000.safetensors.77.tmp").write_bytes(b"of a killed job")
    (results / "runs/cog-ft/s0/transformer/old.safetensors").write_bytes(b"0")
    status, said = verify(results, capsys)
    assert status == 0
    assert len(re.findall("^spare  ", said, re.MULTILINE)) == 2
    assert "2 that no manifest names" in said


def test_a_damaged_video_is_removed_too_for_its_stage_keeps_what_is_there(results, capsys):
    rows = [
        {"prompt_id": i, "prompt": "p", "text": "p", "index": 0, "seed": 1, "file": f"0000/{i}.mp4"} for i in range(2)
    ]
    rows = [{**row, "fps": 8.0, "frames": 17} for row in rows]
    write(results / "samples/r/s0/b/0000.jsonl", "Sample", rows, {f"0000/{i}.mp4": b"video %d" % i for i in range(2)})
    (results / "samples/r/s0/b/0000/.key").write_text("k")
    flip(results / "samples/r/s0/b/0000/1.mp4")
    status, said = verify(results, capsys)
    assert status == 1
    subprocess.run(["sh", "-c", re.search("^rm .*$", said, re.MULTILINE)[0]], check=True)
    assert {path.name for path in (results / "samples").rglob("*") if path.is_file()} == {"0.mp4", ".key"}


def test_a_folder_that_is_not_there_is_a_problem(tmp_path, capsys):
    assert cli.main(["data", "verify", "--results", str(tmp_path / "none")]) == 2
    assert "no such folder; --results takes results/SCALE" in capsys.readouterr().err


def test_one_damaged_shard_makes_again_its_own_descendants(tmp_path, capsys, monkeypatch):
    """On a whole smoke tree of empty manifests, with one real shard in it."""
    shutil.copy(TOP / "params.yaml", tmp_path)
    for name in ("scales", "resources"):
        (tmp_path / name).symlink_to(TOP / name)
    for row in summary(tmp_path):
        path = tmp_path / row["output_file"]
        room = path.relative_to(tmp_path).parts[2]
        if room in KIND and path.suffix == ".jsonl" and path.name != "selection.jsonl":
            write(path, KIND[room], [], {})
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("" if path.suffix == ".txt" else "a placeholder\n")
    (tmp_path / "results/smoke/clips/selection.jsonl").unlink()
    write(tmp_path / "results/smoke/clips/selection.jsonl", "Choice", [], {})
    data = shard(tmp_path / "results/smoke/flow/real/0001.jsonl")
    done = snakemake(tmp_path, "--touch", "--forceall", "all")
    assert done.returncode == 0, done.stderr

    flip(data)
    monkeypatch.chdir(tmp_path)
    status, said = verify(Path("results/smoke"), capsys)
    assert status == 1
    cure = re.findall("^rm .*$", said, re.MULTILINE)
    assert cure == ["rm -f results/smoke/flow/real/0001.jsonl results/smoke/flow/real/0001.safetensors"]
    subprocess.run(["sh", "-c", cure[0]], check=True)

    [command] = re.findall(r"^snakemake --profile local (.*?)   #", said, re.MULTILINE)
    dry = snakemake(tmp_path, "-n", *command.split())
    jobs: dict[str, set[str]] = {}
    made = r"^(?:local)?rule (\w+):\n(?:    .*\n)*?    output: (.*)$"
    for rule, output in re.findall(made, dry.stdout + dry.stderr, re.MULTILINE):
        jobs.setdefault(rule, set()).update(output.split(", "))
    assert jobs["flow_shard"] == {"results/smoke/flow/real/0001.jsonl"}
    assert set(jobs) == {
        "flow_shard",
        "teacher",
        "targets_shard",
        "align_run",
        "sample_run",
        "bench_run",
        "probe",
        "report",
    }
    assert runs(jobs["align_run"]) == {"cog-no_soft", "cog-moalign"}
    assert all("/motion/" in path for path in jobs["targets_shard"])
