"""Manifests: whole or absent, checked when read, and honest about what made them."""

import json

import pytest

from moalign import manifest
from moalign.errors import Problem

PIN = "stage: flow\nrevision: 3\nmachine: {device: cpu, threads: 1, processes: 1}\n"


@pytest.fixture
def pin(tmp_path):
    path = tmp_path / "pin.yaml"
    path.write_text(PIN)
    return path


def write(tmp_path, pin, rows=2):
    out = tmp_path / "flow" / "0000.jsonl"
    with manifest.making(out, manifest.Flow, pin=pin, inputs=[pin]) as made:
        (made.path.parent / "0000.safetensors").write_bytes(b"abc")
        made.file("0000.safetensors")
        made.rows += [manifest.Flow(f"k{i}", "0000.safetensors", i, 0.5) for i in range(rows)]
        made.count("clips", rows)
    return out


def test_what_is_written_is_read(tmp_path, pin):
    read = manifest.read(write(tmp_path, pin), manifest.Flow)
    assert [row.key for row in read.rows] == ["k0", "k1"]
    head = read.header
    assert (head.stage, head.revision, head.rows, head.counts) == ("flow", 3, 2, {"clips": 2})
    assert head.pin == manifest.sha256(pin)
    assert head.inputs == {str(pin): manifest.sha256(pin)}
    assert head.files == {"0000.safetensors": {"sha256": manifest.sha256(read.locate("0000.safetensors")), "bytes": 3}}
    assert head.seconds >= 0 and head.peak_mb > 0 and head.code


def test_an_error_leaves_no_manifest(tmp_path, pin):
    out = tmp_path / "out" / "0000.jsonl"
    with pytest.raises(RuntimeError), manifest.making(out, manifest.Flow, pin=pin) as made:
        made.rows.append(manifest.Flow("k", "f", 0, 0.0))
        raise RuntimeError
    assert list(out.parent.iterdir()) == []


def test_an_old_manifest_is_replaced_whole(tmp_path, pin):
    write(tmp_path, pin, rows=5)
    assert len(manifest.read(write(tmp_path, pin, rows=1), manifest.Flow).rows) == 1


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda lines: lines[:-1], "promises 2 rows and holds 1"),
        (lambda lines: [lines[0], lines[1], "{"], ":3: not a Flow row"),
        (lambda lines: [lines[0], lines[1], '{"key": "k"}'], ":3: not a Flow row"),
        (lambda lines: [lines[0], lines[1], lines[2].replace("0.5", '"fast"')], ":3: motion: expected float"),
        (lambda lines: [], "empty"),
        (lambda lines: [lines[0].replace('"Flow"', '"Clip"'), *lines[1:]], "holds Clip rows where Flow"),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, pin, spoil, says):
    out = write(tmp_path, pin)
    out.write_text("".join(line + "\n" for line in spoil(out.read_text().splitlines())))
    with pytest.raises(Problem, match=says) as caught:
        manifest.read(out, manifest.Flow)
    assert str(out) in str(caught.value)


def test_a_missing_manifest_says_what_to_do(tmp_path):
    with pytest.raises(Problem, match="no such manifest; run the stage"):
        manifest.read(tmp_path / "none.jsonl", manifest.Flow)


def test_text_of_any_language_survives(tmp_path, pin):
    out = tmp_path / "x.jsonl"
    prompt = 'a "red" ball\u2028 — 球'
    with manifest.making(out, manifest.Sample, pin=pin) as made:
        made.rows.append(manifest.Sample(0, prompt, prompt, 0, 1, "a.mp4", 8.0, 17))
    assert manifest.read(out, manifest.Sample).rows[0].prompt == prompt
    assert json.loads(out.read_text().splitlines()[0])["manifest"] == "Sample"
