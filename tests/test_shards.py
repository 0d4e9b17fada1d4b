"""Data files: whole or absent, opened by standard tools, read by byte range or by row."""

import pickle
import subprocess
import sys
import tarfile

import pytest
import torch

from moalign import shards
from moalign.errors import Problem

CLIPS = {f"clip-{size}.mp4": bytes(i % 251 for i in range(size)) for size in (1, 511, 512, 513, 70_000)}


def packed(path):
    with shards.TarWriter(path) as tar:
        return {name: tar.add(name, data) for name, data in CLIPS.items()}


def test_standard_tar_opens_it_and_ranges_are_the_files(tmp_path):
    places = packed(tmp_path / "deep" / "0000.tar")
    for name, (offset, size) in places.items():
        assert shards.read_bytes(tmp_path / "deep" / "0000.tar", offset, size) == CLIPS[name]
    subprocess.run(["tar", "xf", tmp_path / "deep" / "0000.tar", "-C", tmp_path], check=True)
    assert {name: (tmp_path / name).read_bytes() for name in CLIPS} == CLIPS


def test_equal_clips_give_equal_tars(tmp_path):
    packed(tmp_path / "a.tar")
    packed(tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_an_empty_tar_is_a_tar(tmp_path):
    with shards.TarWriter(tmp_path / "0000.tar"):
        pass
    with tarfile.open(tmp_path / "0000.tar") as tar:
        assert tar.getnames() == []


def test_an_error_leaves_the_old_tar_and_nothing_else(tmp_path):
    packed(tmp_path / "0000.tar")
    before = (tmp_path / "0000.tar").read_bytes()
    with pytest.raises(RuntimeError), shards.TarWriter(tmp_path / "0000.tar") as tar:
        tar.add("half.mp4", b"x" * 10_000)
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["0000.tar"]
    assert (tmp_path / "0000.tar").read_bytes() == before


def test_what_a_killed_run_left_is_removed(tmp_path):
    (tmp_path / ".0000.tar.4711.tmp").write_bytes(b"half")
    (tmp_path / ".0001.tar.4711.tmp").write_bytes(b"of another shard")
    packed(tmp_path / "0000.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".0001.tar.4711.tmp", "0000.tar"]


def test_a_tar_cut_short_or_gone(tmp_path):
    places = packed(tmp_path / "0000.tar")
    whole = (tmp_path / "0000.tar").read_bytes()
    (tmp_path / "0000.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Problem, match=r"0000\.tar: shorter than its manifest says"):
        shards.read_bytes(tmp_path / "0000.tar", *places["clip-70000.mp4"])
    with pytest.raises(Problem, match=r"0001\.tar: no such file"):
        shards.read_bytes(tmp_path / "0001.tar", 0, 1)


@pytest.fixture
def stacked(tmp_path):
    tensors = {"flow": torch.arange(24, dtype=torch.int16).view(4, 3, 2), "mean": torch.randn(4, 5).half()}
    shards.write_tensors(tmp_path / "deep" / "0000.safetensors", tensors, {"unit": "1/64 pixel"})
    return tmp_path / "deep" / "0000.safetensors", tensors


def test_tensors_are_read_row_by_row(stacked):
    path, tensors = stacked
    shard = shards.TensorShard(path)
    assert shard.metadata == {"unit": "1/64 pixel"}
    for name, whole in tensors.items():
        for i in range(4):
            assert torch.equal(shard.row(name, i), whole[i]) and shard.row(name, i).dtype == whole.dtype
        assert torch.equal(shard[name][1:3], whole[1:3])
    assert [file.name for file in path.parent.iterdir()] == ["0000.safetensors"]


def test_a_transposed_tensor_is_stored_as_it_looks(tmp_path):
    tensor = torch.randn(3, 4).T
    shards.write_tensors(tmp_path / "t.safetensors", {"t": tensor})
    assert torch.equal(shards.TensorShard(tmp_path / "t.safetensors")["t"][:], tensor)


def test_a_row_is_a_copy(stacked):
    path, tensors = stacked
    shard = shards.TensorShard(path)
    shard.row("mean", 2).zero_()
    assert torch.equal(shard.row("mean", 2), tensors["mean"][2])


def test_what_is_not_there_is_named(stacked, tmp_path):
    path, _ = stacked
    shard = shards.TensorShard(path)
    with pytest.raises(Problem, match="flow has 4 rows and a manifest names row 4"):
        shard.row("flow", 4)
    with pytest.raises(Problem, match="has no tensor 'target', only flow, mean"):
        shard.row("target", 0)
    with pytest.raises(Problem, match="no such file"):
        shards.TensorShard(tmp_path / "none.safetensors")
    for bad in (b"", b"no tensors at all", path.read_bytes()[:-5]):
        (tmp_path / "bad.safetensors").write_bytes(bad)
        with pytest.raises(Problem, match=r"bad\.safetensors: not a whole safetensors file"):
            shards.TensorShard(tmp_path / "bad.safetensors")


def test_open_shards_travel_to_other_processes_closed(stacked):
    path, tensors = stacked
    opened = shards.TensorShards()
    assert opened[path] is opened[path]
    assert torch.equal(pickle.loads(pickle.dumps(opened))[path].row("flow", 1), tensors["flow"][1])


WRITE = """
import sys, torch
from moalign import shards
from moalign.errors import Problem
out = sys.argv[1]
for write in (lambda: shards.write_tensors(out + "/0000.safetensors", {"a": torch.zeros(100_000)}), lambda: tar()):
    def tar():
        with shards.TarWriter(out + "/0000.tar") as made:
            for i in range(100):
                made.add(f"{i}.mp4", bytes(4096))
    try:
        write()
    except Problem as problem:
        print(problem)
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("mount", "says"),
    [
        ("mount -t tmpfs -o size=64k tmpfs {0}", "no space left on the device"),
        ("mount --bind {0} {0} && mount -o remount,bind,ro {0}", "the file system is read-only"),
    ],
)
def test_a_full_or_read_only_disk_is_one_problem(tmp_path, mount, says):
    """Real mounts, in a namespace of their own that ends with the command."""
    command = mount.format(tmp_path) + f" && {sys.executable} -c '{WRITE}' {tmp_path} && ls -A {tmp_path}"
    done = subprocess.run(["unshare", "-m", "-r", "sh", "-c", command], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 2 and all(says in line for line in lines)  # two problems, and no file is left
