"""Physics-IQ on made-up footage of two scenes: metrics by hand, scores of known videos, faults, a killed scoring."""

import json
import os
import shutil

import cv2
import numpy as np
import pytest

from moalign import cli, video
from moalign.bench import physics_iq
from moalign.bench.physics_iq import Footage, agreement, totals
from moalign.errors import Problem
from moalign.stages import physics_iq as stage

FPS = 4
FRAMES = 5 * FPS
SCENES = ("block", "disc")


def clip(scene, side, take, height=96, width=128):
    """A bright thing crosses a grey ground; the second take is a little later and lower."""
    speed = 4 + physics_iq.SIDES.index(side) + 2 * SCENES.index(scene)
    frames = np.full((FRAMES, height, width, 3), 60, np.uint8)
    for number, frame in enumerate(frames):
        centre = (10 + speed * number - 2 * (take - 1), 40 + 3 * (take - 1))
        if scene == "block":
            cv2.rectangle(frame, (centre[0] - 12, centre[1] - 12), (centre[0] + 12, centre[1] + 12), (220, 200, 90), -1)
        else:
            cv2.circle(frame, centre, 14, (90, 200, 230), -1)
    return frames


@pytest.fixture(autouse=True)
def two_scenes(monkeypatch):
    monkeypatch.setattr(physics_iq, "SCENES", SCENES)


@pytest.fixture(scope="module")
def footage(tmp_path_factory):
    """Folder with real/, and as videos: first/ and second/ (the takes), black/, still/, reversed/."""
    folder = tmp_path_factory.mktemp("footage")
    number = 0
    for scene in SCENES:
        for side in physics_iq.SIDES:
            number += 1
            name = f"{number:04}_perspective-{side}_trimmed-{scene}.mp4"
            for take, taken in ((1, number), (2, number + 6)):
                real = f"{taken:04}_testing-videos_4FPS_perspective-{side}_take-{take}_trimmed-{scene}.mp4"
                video.write(folder / "real" / real, clip(scene, side, take), FPS)
                (folder / ("first", "second")[take - 1]).mkdir(exist_ok=True)
                shutil.copy(folder / "real" / real, folder / ("first", "second")[take - 1] / name)
            frames = clip(scene, side, 1)
            video.write(folder / "black" / name, np.zeros_like(frames), FPS)
            video.write(folder / "still" / name, np.repeat(frames[:1], FRAMES, axis=0), FPS)
            video.write(folder / "reversed" / name, frames[::-1], FPS)
    return folder


@pytest.fixture
def here(tmp_path, footage):
    """A copy that may be spoilt."""
    shutil.copytree(footage, tmp_path, dirs_exist_ok=True)
    return tmp_path


def scored(folder, name, out=None):
    """Exit status and what was written."""
    out = out or folder / f"{name}.json"
    status = stage.score(str(folder / name), str(folder / "real"), str(out))
    return status, json.loads(out.read_text())


# --- facts ------------------------------------------------------------------------------------------------------------


def test_names_and_numbers(monkeypatch):
    monkeypatch.undo()
    assert len(physics_iq.SCENES) == 66
    assert list(physics_iq.SCENES) == sorted(physics_iq.SCENES)
    shots = physics_iq.shots("videos", "real", "masks", 8)
    assert len(shots) == 198
    assert len({path for shot in shots for path in shot.files}) == 5 * 198
    assert shots[0].generated.name == "0001_perspective-left_trimmed-ball-and-block-fall.mp4"
    assert shots[91].takes[0].name == "0092_testing-videos_8FPS_perspective-center_take-1_trimmed-lit-candle.mp4"
    assert shots[91].masks[1].name == "0290_video-masks_8FPS_perspective-center_take-2_trimmed-lit-candle.mp4"
    last = "0396_testing-videos_8FPS_perspective-right_take-2_trimmed-weight-protects-duck.mp4"
    assert shots[-1].takes[1].name == last


# --- metrics by hand --------------------------------------------------------------------------------------------------


def small(*masks, value=0):
    """Footage of 4 x 4 frames of one grey, with these masks."""
    return Footage(np.full((len(masks), 4, 4, 3), value, np.uint8), np.array(masks, bool))


def corner(rows, columns):
    mask = np.zeros((4, 4), bool)
    mask[:rows, :columns] = True
    return mask


def test_metrics_on_frames_of_four_by_four():
    a = small(corner(2, 2), corner(2, 4), value=0)  # 4 and 8 pixels
    b = small(corner(2, 2), corner(4, 2), value=51)  # 4 and 8 pixels; in the second frame 4 are shared, 12 in all
    found = agreement(a, b)
    assert found["spatial"] == pytest.approx(4 / 12)
    assert found["spatiotemporal"] == pytest.approx((1 + 0.3333) / 2)  # 4 digits a frame
    # How often: a has 4 pixels always and 4 at half, b the same 4 always and another 4 at half.
    assert found["weighted_spatial"] == pytest.approx(4 / (4 + 0.5 * 8))
    assert found["mse"] == pytest.approx(0.04)  # (51 / 255)^2
    assert agreement(b, a) == found


def test_empty_masks_agree():
    empty = small(corner(0, 0), corner(0, 0))
    assert agreement(empty, empty) == {"spatial": 1, "spatiotemporal": 1, "weighted_spatial": 1, "mse": 0}
    some = agreement(empty, small(corner(0, 0), corner(1, 1)))
    assert some == {"spatial": 0, "spatiotemporal": 0.5, "weighted_spatial": 0, "mse": 0}


def test_masks_follow_a_running_mean():
    frames = np.full((3, 40, 40, 3), 100, np.uint8)
    frames[1:, 10:30, 10:30] = 114  # the mean has 100 + 0.3 x 14 = 104.2, then 107.1: 9.8 and 6.9 away
    assert not np.any(list(physics_iq.moving(frames)))
    frames[1:, 10:30, 10:30] = 120  # 14 and 9.8 away
    first, second, third = physics_iq.moving(frames)
    assert not first.any()
    assert second[12:28, 12:28].all()
    assert not second[:7].any()
    assert set(np.unique(second)) == {0, 255}
    assert not third.any()


def shot(video, variance):
    return {"video": dict(zip(physics_iq.METRICS, video, strict=True))} | {
        "variance": dict(zip(physics_iq.METRICS, variance, strict=True))
    }


def test_scores_by_hand():
    one = shot((0.3, 0.2, 0.1, 0.02), (0.6, 0.5, 0.4, 0.01))
    other = shot((0.9, 0.4, 0.3, 0.01), (0.6, 0.5, 0.4, 0.03))
    made = totals([one, other])
    first, second = (0.5, 0.4, 0.25, 0.5), (1, 0.8, 0.75, 1)
    assert made["verified"] == pytest.approx(100 * np.mean(first + second), abs=1e-4)
    assert made["verified_by_metric"]["spatial"] == pytest.approx(75, abs=1e-4)
    assert made["original"] == round(100 * ((0.6 / 0.6 + 0.3 / 0.5 + 0.2 / 0.4) / 3 - (0.015 - 0.02)), 2)


def test_scores_stay_within_their_range():
    assert totals([shot((1, 1, 1, 0), (0.5, 0.5, 0.5, 0.1))])["original"] == 100
    worst = totals([shot((0, 0, 0, 0.9), (0.5, 0.5, 0.5, 0.1))])
    assert worst["original"] == 0
    assert worst["verified"] == pytest.approx(100 / 4 / 9, abs=1e-4)
    assert totals([shot((0.5, 0.5, 0.5, 0), (0.5, 0.5, 0.5, 0))])["verified"] == pytest.approx(100, abs=1e-4)


def test_takes_that_never_meet_have_no_score():
    with pytest.raises(Problem, match="never move at the same place"):
        totals([shot((0, 0, 0, 0), (0, 0, 0, 0))])


# --- made-up footage --------------------------------------------------------------------------------------------------


def test_real_footage_reaches_all(footage, tmp_path):
    """The first take is the goal itself; the second agrees with it as the takes do, which is 100 by definition."""
    for name in ("first", "second"):
        status, made = scored(footage, name, tmp_path / "out.json")
        assert status == 0
        assert made["scores"]["verified"] == pytest.approx(100, abs=1e-4)
        assert made["scores"]["original"] == pytest.approx(100, abs=0.02)  # variances are rounded
        found = [shot for scene in made["scenes"].values() for shot in scene.values()]
        if name == "second":
            assert all(shot["video"] == shot["variance"] for shot in found)
        else:
            assert all(shot["video"]["mse"] == 0 for shot in found)


def test_wrong_videos_score_low(footage, tmp_path):
    names = ("black", "still", "reversed")
    scores = {name: scored(footage, name, tmp_path / "out.json")[1]["scores"] for name in names}
    for name in ("black", "still"):
        assert scores[name]["verified_by_metric"]["spatial"] == 0
        assert scores[name]["verified_by_metric"]["weighted_spatial"] == 0
        assert scores[name]["verified"] < 40
        assert scores[name]["original"] < 40
    assert scores["black"]["original"] < scores["reversed"]["original"] < 100
    assert scores["reversed"]["verified_by_metric"]["spatial"] > 80  # the same place, at other times
    assert scores["reversed"]["verified_by_metric"]["spatiotemporal"] < 50


def test_another_size_is_brought_to_the_footages(here):
    for path in sorted((here / "second").iterdir()):
        frames = video.read(path, list(range(FRAMES)))
        video.write(path, video.scale(frames, 192, 256), FPS)
    status, made = scored(here, "second")
    assert status == 0
    assert made["scores"]["verified"] > 85


def test_given_masks_are_read_as_computed_ones_are(here):
    _, computed = scored(here, "second")
    (here / "masks").mkdir()
    for path in (here / "real").iterdir():
        given = here / "masks" / path.name.replace("testing-videos", "video-masks")
        physics_iq.store(physics_iq.moving(physics_iq.decode(path, FRAMES)), given, FPS)
    stage.score(str(here / "second"), str(here / "real"), str(here / "out.json"), str(here / "masks"))
    made = json.loads((here / "out.json").read_text())
    assert made["masks"] == str(here / "masks")
    assert made["scenes"] == computed["scenes"]
    assert made["scores"] == computed["scores"]


def test_given_masks_take_the_place_of_computed_ones(here):
    """The takes' masks as files of white on black, as the benchmark ships them; here all of every frame moves."""
    for path in sorted((here / "real").iterdir()):
        white = np.full((FRAMES, 96, 128, 3), 255, np.uint8)
        video.write(here / "masks" / path.name.replace("testing-videos", "video-masks"), white, FPS)
    arguments = ["--videos", str(here / "first"), "--real", str(here / "real"), "--masks", str(here / "masks")]
    assert cli.main(["physics-iq", "score", *arguments, "--out", str(here / "out.json")]) == 0
    for scene in json.loads((here / "out.json").read_text())["scenes"].values():
        assert all(shot["variance"]["spatiotemporal"] == 1 for shot in scene.values())
        assert all(0 < shot["video"]["spatial"] < 1 for shot in scene.values())
    os.remove(next((here / "masks").iterdir()))
    assert cli.main(["physics-iq", "score", *arguments, "--out", str(here / "out.json")]) == 1


# --- faults -----------------------------------------------------------------------------------------------------------


def spoil(folder):
    """One fault of each kind; returns what is wrong with which file."""
    videos = folder / "second"
    (videos / "0001_perspective-left_trimmed-block.mp4").unlink()
    os.rename(videos / "0002_perspective-center_trimmed-block.mp4", videos / "0002_center.mp4")
    (videos / "0003_perspective-right_trimmed-block.mp4").write_bytes(b"\0\0\0\x20ftypisom no more")
    video.write(videos / "0004_perspective-left_trimmed-disc.mp4", clip("disc", "left", 1)[:-1], FPS)
    video.write(videos / "0005_perspective-center_trimmed-disc.mp4", clip("disc", "center", 1), 2 * FPS)
    shutil.copy(videos / "0006_perspective-right_trimmed-disc.mp4", videos / "0006.mp4")
    (videos / "notes.txt").write_text("")
    (folder / "real" / "0012_testing-videos_4FPS_perspective-right_take-2_trimmed-disc.mp4").unlink()
    return {
        ("missing", "0001_perspective-left_trimmed-block.mp4"),
        ("misnamed", "0002_center.mp4"),
        ("unreadable", "0003_perspective-right_trimmed-block.mp4"),
        ("length", "0004_perspective-left_trimmed-disc.mp4"),
        ("rate", "0005_perspective-center_trimmed-disc.mp4"),
        ("doubled", "0006.mp4"),
        ("extra", "notes.txt"),
        ("missing", "0012_testing-videos_4FPS_perspective-right_take-2_trimmed-disc.mp4"),
    }


def test_check_has_a_line_for_every_fault(here, capsys):
    arguments = ["--videos", str(here / "second"), "--real", str(here / "real")]
    assert cli.main(["physics-iq", "check", *arguments]) == 0
    assert "6 of 6 videos" in capsys.readouterr().out
    wanted = spoil(here)
    assert cli.main(["physics-iq", "check", *arguments]) == 1
    head, *lines = capsys.readouterr().out.splitlines()
    assert "0 of 6 videos" in head
    found = {(line.split()[0], line.split(": ")[0].split("/")[-1]) for line in lines}
    assert found == wanted
    assert len(lines) == len(wanted)


def test_a_longer_video_is_refused_and_longer_footage_is_not(here):
    longer = np.concatenate([clip("block", "left", 1), clip("block", "left", 1)])
    video.write(here / "real/0001_testing-videos_4FPS_perspective-left_take-1_trimmed-block.mp4", longer, FPS)
    assert scored(here, "first")[0] == 0
    video.write(here / "first/0001_perspective-left_trimmed-block.mp4", longer, FPS)
    status, made = scored(here, "first")
    assert status == 1
    assert made["faults"][0].endswith("40 frames, 20 are wanted (5 s); cut it")


def test_no_score_of_some_scenes(here, capsys):
    (here / "second/0001_perspective-left_trimmed-block.mp4").unlink()
    status, made = scored(here, "second")
    assert status == 1
    assert made["scores"] is None
    assert made["not_measured"] == ["block"]
    assert list(made["scenes"]) == ["disc"]
    assert len(made["faults"]) == 1
    assert "no score: 1 faults, 1 of 2 scenes measured" in capsys.readouterr().out


def test_frames_that_do_not_decode_leave_no_score(here):
    path = here / "second/0004_perspective-left_trimmed-disc.mp4"
    data = bytearray(path.read_bytes())
    first, last = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
    assert first < last
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    assert stage.check(str(here / "second"), str(here / "real")) == 0  # its packets are there
    status, made = scored(here, "second")
    assert status == 1
    assert made["scores"] is None
    assert made["not_measured"] == ["disc"]
    assert "does not decode" in made["faults"][0]


def test_a_link_to_nothing_is_a_fault(here):
    path = here / "second/0004_perspective-left_trimmed-disc.mp4"
    path.unlink()
    path.symlink_to(here / "nowhere.mp4")
    status, made = scored(here, "second")
    assert status == 1
    assert made["faults"] == [f"unreadable {path}: missing"]


@pytest.mark.parametrize("folder", ["none", "second"])
def test_a_folder_without_real_footage_is_a_problem(here, folder, capsys):
    assert cli.main(["physics-iq", "check", "--videos", str(here / "second"), "--real", str(here / folder)]) == 2
    assert folder in capsys.readouterr().err


# --- again, and killed ------------------------------------------------------------------------------------------------


def test_equal_bytes_on_a_rerun(here):
    scored(here, "second")
    first = (here / "second.json").read_bytes()
    assert not (here / "second.json.parts").exists()
    scored(here, "second")
    assert (here / "second.json").read_bytes() == first


def test_a_killed_scoring_goes_on(here, monkeypatch):
    scored(here, "second")
    whole = (here / "second.json").read_bytes()
    (here / "second.json").unlink()
    true, asked = physics_iq.measure, []

    def dying(shot, fps):
        asked.append((shot.scene, shot.side))
        if len(asked) == 5:
            raise KeyboardInterrupt
        return true(shot, fps)

    monkeypatch.setattr(physics_iq, "measure", dying)
    with pytest.raises(KeyboardInterrupt):
        scored(here, "second")
    assert not (here / "second.json").exists()
    scored(here, "second")
    assert asked[5:] == [("disc", side) for side in physics_iq.SIDES]
    assert (here / "second.json").read_bytes() == whole


def test_a_changed_video_is_measured_again(here):
    (here / "second/0001_perspective-left_trimmed-block.mp4").unlink()
    _, before = scored(here, "second")
    shutil.copy(here / "black/0004_perspective-left_trimmed-disc.mp4", here / "second")
    _, after = scored(here, "second")
    assert before["scenes"]["disc"]["left"] != after["scenes"]["disc"]["left"]
    assert before["scenes"]["disc"]["right"] == after["scenes"]["disc"]["right"]
