"""Notes: features that may be wrong are extracted, and the reason is stored with the clip."""

import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from extract.face.geometry import FEATURES
from extract.pipeline.extractor import FeatureExtractor, StageTimer, open_extractor
from extract.pipeline.notes import NEW_FACE, notes_of
from extract.pipeline.types import ExtractorConfig, Job, Window, WindowFeatures
from extract.pipeline.writer import extract_and_write
from extract.video.reader import DAMAGED, read_video
from features.__main__ import main as features
from features.manifest import Clip
from features.recipe import Recipe
from features.store.store import FeatureStore, plan
from tests.support.clips import face_frames, write_video
from tests.support.extracted import random_extractor_config

NUM_FRAMES, KEYFRAME_EVERY = 60, 20


@pytest.fixture(scope="module")
def extractor_config(detector_path: Path, landmarker_path: Path) -> ExtractorConfig:
    return random_extractor_config(detector_path, landmarker_path, window_s=6.0)


@pytest.fixture(scope="module")
def extractor(extractor_config: ExtractorConfig):
    extractor = open_extractor(extractor_config)
    yield extractor
    extractor.close()


@pytest.fixture(scope="module")
def faces(real_clips: dict[str, Path]) -> list[np.ndarray]:
    return face_frames(real_clips["carphone"], NUM_FRAMES, 176, 144)


def write_plain(path: Path, frames: list[np.ndarray]) -> Path:
    keyframes = {"g": str(KEYFRAME_EVERY), "bf": "0", "x264-params": "scenecut=0"}
    return write_video(path, frames, 10, options=keyframes)


def damage(path: Path, packet_number: int) -> None:
    """Overwrite the second half of one packet."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][packet_number]
        position, size = packet.pos, packet.size
    content = bytearray(path.read_bytes())
    content[position + size // 2 : position + size] = b"\xff" * (size - size // 2)
    path.write_bytes(content)


def notes_of_file(path: Path, extractor: FeatureExtractor, folder: Path, recipe: Recipe) -> FeatureStore:
    """A store with the one window of a file."""
    store = plan(folder / "s.zarr", [Clip("v.mp4#0", path, labels={"label": "x"})], recipe, numerics={})
    job = Job(path, (Window(0, 0.0, None, frozenset({"embeddings", "geometry"})),))
    store = FeatureStore.open(store.path, "r+")
    outcomes = list(extract_and_write(store, job, extractor, threads=1, timer=StageTimer()))
    assert isinstance(outcomes[0], WindowFeatures), outcomes
    return store


def test_frames_from_a_damaged_packet_to_the_next_keyframe_are_doubted(
    faces: list[np.ndarray], tmp_path: Path
) -> None:
    plain = write_plain(tmp_path / "plain.mp4", faces)
    damaged = write_plain(tmp_path / "damaged.mp4", faces)
    damage(damaged, 25)
    read, expected = list(read_video(damaged)), list(read_video(plain))
    doubted = [round(frame.pts_s * 10) for frame in read if frame.doubts]
    assert doubted == list(range(25, 2 * KEYFRAME_EVERY))
    assert {doubt for frame in read for doubt in frame.doubts} == {DAMAGED}
    for frame, original in zip(read, expected, strict=True):
        assert frame.doubts or np.array_equal(frame.rgb(), original.rgb())
    assert not any(frame.doubts for frame in expected)


def test_notes_are_stored_listed_and_replaced(
    faces: list[np.ndarray],
    tmp_path: Path,
    extractor_config: ExtractorConfig,
    extractor: FeatureExtractor,
    capsys: pytest.CaptureFixture[str],
) -> None:
    video = write_plain(tmp_path / "v.mp4", faces)
    damage(video, 25)
    store = notes_of_file(video, extractor, tmp_path, extractor_config.recipe)
    sampled = sum(25 <= round(10 * time_s) < 40 for time_s in store.read_frames()[0, :, 0].tolist())
    assert store.rows.texts("notes").tolist() == [f"{sampled} of 18 frames: {DAMAGED}"]
    assert features(["info", str(store.path)]) == 0
    assert f"v.mp4#0: {sampled} of 18 frames: {DAMAGED}" in " ".join(capsys.readouterr().err.split())
    frames, (x, _) = store.read_frames()[0], store.read_stream("embeddings")
    store.write_row(0, geometry=store.read_stream("geometry")[0][0])
    assert store.rows.texts("notes")[0], "the embeddings are the old ones"
    store.write_row(0, embeddings=x[0], frames=frames)
    assert store.rows.texts("notes").tolist() == [""]


def test_another_face_in_a_window_is_noted(
    faces: list[np.ndarray], tmp_path: Path, extractor_config: ExtractorConfig, extractor: FeatureExtractor
) -> None:
    """Three seconds at the left, then three at the right."""
    blank = np.zeros_like(faces[0])
    beside = [np.hstack([face, blank] if k < 30 else [blank, face]) for k, face in enumerate(faces)]
    video = write_plain(tmp_path / "v.mp4", beside)
    store = notes_of_file(video, extractor, tmp_path, extractor_config.recipe)
    assert store.rows.texts("notes").tolist() == [f"1 of 18 frames: {NEW_FACE}"]


def test_assumed_times_of_a_raw_stream_are_noted(faces: list[np.ndarray], tmp_path: Path) -> None:
    video = write_video(tmp_path / "v.mp4", faces, 10)
    raw = tmp_path / "v.h264"
    argv = [
        "ffmpeg",
        "-loglevel",
        "error",
        "-i",
        str(video),
        "-c",
        "copy",
        "-bsf:v",
        "h264_mp4toannexb",
        str(raw),
    ]
    try:
        subprocess.run(argv, check=True)
    except FileNotFoundError:
        pytest.skip("ffmpeg is not installed")
    doubts = {frame.doubts for frame in read_video(raw)}
    assert len(doubts) == 1
    assert "the file has no times: " in doubts.pop()[0]


@pytest.mark.parametrize("noise", [0, 8])
def test_picture_of_a_face_never_moves(
    real_clips: dict[str, Path],
    tmp_path: Path,
    extractor_config: ExtractorConfig,
    extractor: FeatureExtractor,
    noise: float,
) -> None:
    """Also with the noise of a camera; the video of the same face has no note."""
    moving = face_frames(real_clips["pexels"], 180, 320, 240)
    rng = np.random.default_rng(0)
    still = [
        np.clip(moving[0] + rng.normal(0, noise, moving[0].shape), 0, 255).astype(np.uint8)
        for _ in range(NUM_FRAMES)
    ]
    for name, frames, expected in (
        ("still", still, "the face never moves: perhaps it is a picture"),
        ("moving", moving[::3], ""),
    ):
        video = write_video(tmp_path / f"{name}.mp4", frames, 10)
        (tmp_path / name).mkdir()
        store = notes_of_file(video, extractor, tmp_path / name, extractor_config.recipe)
        assert store.rows.texts("notes").tolist() == [expected]


def test_faces_without_landmarks_are_noted() -> None:
    """A drawing may look like a face to the detector, and not to the landmarker."""
    frames = np.tile(np.array([0, 1, 1, 2, 2, 0.9], np.float32), (10, 1))
    geometry = np.random.default_rng(0).normal(size=(10, len(FEATURES))).astype(np.float32)
    assert notes_of({}, 10, frames, geometry) == ""
    geometry[:6] = np.nan
    assert notes_of({}, 10, frames, geometry).startswith("6 of 10 faces have no landmarks")
    frames[:6, 5] = 0
    assert notes_of({}, 10, frames, geometry) == ""
    assert notes_of({"late": 2}, 10, frames, None) == "2 of 10 frames: late"
    assert notes_of({"raw": 10}, 10, frames, None) == "raw"
