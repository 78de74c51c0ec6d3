"""Extraction of one video: the values of a row depend only on file, window and recipe."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import cv2
import numpy as np
import pytest

from extract.pipeline.extractor import FeatureExtractor, StageTimer, extract_video, open_extractor
from extract.pipeline.types import ExtractorConfig, FailedWindow, Job, Part, Window, WindowFeatures
from extract.pipeline.writer import extract_and_write, file_state, same_faces
from extract.video.reader import read_video
from features.manifest import Clip
from features.store.store import plan
from tests.support.clips import face_frames, looped, write_video
from tests.support.extracted import random_extractor_config

PARTS: frozenset[Part] = frozenset({"embeddings", "geometry", "crops"})


@pytest.fixture(scope="module")
def extractor_config(detector_path: Path, landmarker_path: Path) -> ExtractorConfig:
    return random_extractor_config(detector_path, landmarker_path, window_s=2.0)


@pytest.fixture(scope="module")
def extractor(extractor_config: ExtractorConfig):
    extractor = open_extractor(extractor_config)
    yield extractor
    extractor.close()


@pytest.mark.parametrize("part", ["detector", "landmarker", "weights"])
def test_model_replaced_after_planning_is_an_error(
    extractor_config: ExtractorConfig, tmp_path: Path, part: str
) -> None:
    """A worker would write rows of another model under the planned recipe."""
    other = tmp_path / "other"
    other.write_bytes(b"another model")
    replaced = {
        "detector": replace(extractor_config, detector_files=(other,)),
        "landmarker": replace(extractor_config, landmarker_file=other),
        "weights": replace(
            extractor_config,
            recipe=replace(
                extractor_config.recipe,
                encoder=replace(extractor_config.recipe.encoder, weights_sha256="0" * 64),
            ),
        ),
    }
    said = "changed after planning" if part == "weights" else "is not the file of the recipe"
    with pytest.raises(ValueError, match=said):
        open_extractor(replaced[part])


@pytest.fixture(scope="module")
def long_video(real_clips: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of a face, 10 frames a second, with B-frames."""
    frames = looped(face_frames(real_clips["carphone"], 60, 176, 144), 80)
    return write_video(tmp_path_factory.mktemp("video") / "long.mp4", frames, 10, options={"bf": "2"})


def windows(*spans: tuple[float, float | None], parts: frozenset[Part] = PARTS) -> tuple[Window, ...]:
    return tuple(Window(row, start, end, parts) for row, (start, end) in enumerate(spans))


def rows_of(
    path: Path, wanted: tuple[Window, ...], extractor: FeatureExtractor, **options
) -> list[WindowFeatures]:
    outcomes = list(extract_video(Job(path, wanted), extractor, **options))
    assert not [item for item in outcomes if isinstance(item, FailedWindow)], outcomes
    return [item for item in outcomes if isinstance(item, WindowFeatures)]


def assert_same(a: WindowFeatures, b: WindowFeatures) -> None:
    assert np.array_equal(a.frames, b.frames, equal_nan=True)
    assert np.array_equal(a.embeddings, b.embeddings)
    assert np.array_equal(a.geometry, b.geometry, equal_nan=True)
    assert a.crops == b.crops


def test_row_equals_cropper_and_engine_frame_by_frame(long_video: Path, extractor: FeatureExtractor) -> None:
    """A row has what cropper and engine return for the frames at 0, 1/3, 2/3, … s."""
    (row,) = rows_of(long_video, windows((0, 2)), extractor)
    assert row.frames.shape == (6, 6)
    frames = {round(frame.pts_s, 3): frame.rgb() for frame in read_video(long_video)}
    extractor.cropper.reset()
    assert row.frames[:, 0] == pytest.approx([0, 0.4, 0.7, 1.0, 1.4, 1.7])
    for t, time_s in enumerate(row.frames[:, 0]):
        crop = extractor.cropper.crop(frames[round(float(time_s), 3)])
        assert row.frames[t, 1:5] == pytest.approx(crop.box)
        assert row.frames[t, 5] == pytest.approx(crop.score)
        assert np.array_equal(row.embeddings[t], extractor.engine.embed(crop.image[None])[0])
        stored = cv2.imdecode(np.frombuffer(row.crops[t], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(stored.astype(int) - crop.image).mean() < 3
    assert np.isfinite(row.geometry).all()


def test_a_row_does_not_depend_on_its_neighbours(long_video: Path, extractor: FeatureExtractor) -> None:
    """One pass over four windows equals four separate extractions, in any order of the windows."""
    spans = [(0.0, 2.0), (2.0, 4.0), (4.0, 6.0), (6.0, 8.0)]
    together = rows_of(long_video, windows(*spans), extractor)
    for row, span in zip(together, spans, strict=True):
        (alone,) = rows_of(long_video, windows(span), extractor)
        assert_same(row, alone)
    backwards = rows_of(long_video, tuple(reversed(windows(*spans))), extractor)
    assert [row.window.row for row in backwards] == [0, 1, 2, 3]


def test_overlapping_windows_are_complete(long_video: Path, extractor: FeatureExtractor) -> None:
    overlapping = rows_of(long_video, windows((0, 2), (1, 3), (2, 4)), extractor)
    assert len(overlapping) == 3
    for row in sorted(overlapping, key=lambda row: row.window.row):
        span = (row.window.start_s, row.window.end_s)
        assert_same(row, rows_of(long_video, windows(span), extractor)[0])


def test_only_requested_parts_are_computed(long_video: Path, extractor: FeatureExtractor) -> None:
    timer = StageTimer()
    (row,) = rows_of(long_video, windows((0, 2), parts=frozenset({"geometry"})), extractor, timer=timer)
    assert row.embeddings is None
    assert row.crops is None
    assert row.geometry is not None
    assert "encode" not in timer.seconds
    assert timer.seconds["decode"] > 0


def test_a_short_video_is_padded_at_the_end(long_video: Path, extractor: FeatureExtractor) -> None:
    (row,) = rows_of(long_video, windows((7.0, 8.0)), extractor)
    sampled = np.isfinite(row.frames[:, 0])
    assert sampled.tolist() == [True] * 3 + [False] * 3
    assert (row.frames[~sampled, 5] == 0).all()
    assert (row.embeddings[~sampled] == 0).all()


def test_frames_without_a_face_are_not_valid(
    real_clips: dict[str, Path], extractor: FeatureExtractor
) -> None:
    (row,) = rows_of(real_clips["face_noface"], windows((2.0, 4.0)), extractor)
    missing = row.frames[:, 5] == 0
    assert 0 < missing.sum() < 6
    assert np.isfinite(row.frames[:, 0]).all()
    assert np.isnan(row.frames[missing, 1:5]).all()
    assert (row.embeddings[missing] == 0).all()
    assert np.isnan(row.geometry[missing]).all()
    assert [crop == b"" for crop in row.crops] == missing.tolist()


def test_a_long_video_is_opened_and_decoded_once(
    long_video: Path, extractor: FeatureExtractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any number of windows."""
    opened, decoded = [], []

    def counting(path: Path, **options):
        opened.append(path)
        for frame in read_video(path, **options):
            decoded.append(frame.pts_s)
            yield frame

    monkeypatch.setattr("extract.pipeline.extractor.read_video", counting)
    rows_of(long_video, windows((0, 2), (2, 4), (4, 6), (6, 8)), extractor)
    assert len(opened) == 1
    assert len(decoded) == len(set(decoded)) <= 80


def test_embeddings_that_are_not_finite_fail_the_window(
    long_video: Path, extractor_config: ExtractorConfig, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    """An encoder may overflow on one crop: the windows before and after it are in the store."""
    path = tmp_path / "s.zarr"
    clips = [Clip(f"long.mp4#{start}000", long_video, start, start + 2) for start in (0, 2, 4)]
    recipe = replace(extractor_config.recipe, geometry=None)
    store = plan(path, clips, recipe, numerics={})
    calls = count()

    def overflowing(crops: np.ndarray) -> np.ndarray:
        found = extractor.engine.embed(crops)
        return np.where(next(calls) == 1, np.float16(np.inf), found)

    broken = replace(extractor, engine=replace(extractor.engine, run=overflowing))
    wanted = windows((0, 2), (2, 4), (4, 6), parts=frozenset({"embeddings"}))
    job = Job(long_video, wanted)
    outcomes = list(extract_and_write(store, job, broken, threads=1, timer=StageTimer()))
    assert [isinstance(outcome, FailedWindow) for outcome in outcomes] == [False, True, False]
    assert np.flatnonzero(store.table().state == 2).tolist() == [1]
    assert store.table().state.tolist() == [1, 2, 1]
    assert "not finite" in store.table().failure[1]


def test_a_video_replaced_while_it_is_read_is_a_failure(
    long_video: Path, extractor_config: ExtractorConfig, extractor: FeatureExtractor, tmp_path: Path
) -> None:
    """Features of the old file must not be stored with the size and time of the new one."""
    video = tmp_path / "v.mp4"
    video.write_bytes(long_video.read_bytes())
    clips = [Clip(f"v.mp4#{start}000", video, start, start + 2) for start in (0, 2, 4)]
    store = plan(tmp_path / "s.zarr", clips, replace(extractor_config.recipe, geometry=None), numerics={})
    wanted = windows((0, 2), (2, 4), (4, 6), parts=frozenset({"embeddings"}))
    job = Job(video, wanted, file_state=file_state(video))
    outcomes = extract_and_write(store, job, extractor, threads=1, timer=StageTimer())
    assert isinstance(next(outcomes), WindowFeatures)
    (tmp_path / "new.mp4").write_bytes(long_video.read_bytes() + b"more")
    (tmp_path / "new.mp4").replace(video)
    assert [isinstance(outcome, FailedWindow) for outcome in outcomes] == [True, True]
    assert store.table().state.tolist() == [1, 2, 2]
    assert store.table().failure[1] == "the file has changed since planning: extract it again"


def test_window_does_not_follow_the_face_of_the_window_before(
    real_clips: dict[str, Path], extractor: FeatureExtractor, tmp_path: Path
) -> None:
    """A window starts without the last box of the window before it."""
    first = face_frames(real_clips["single"], 20, 176, 144)
    second = face_frames(real_clips["carphone"], 20, 176, 144)
    both = write_video(tmp_path / "both.mp4", first + second, 10)
    (alone,) = rows_of(both, windows((2.0, 4.0)), extractor)
    assert_same(rows_of(both, windows((0.0, 2.0), (2.0, 4.0)), extractor)[1], alone)


@pytest.mark.parametrize(
    ("column", "difference"), [(0, 5.0), (0, 0.02), (1, 1.0), (4, -1.0), (5, 0.1)], ids=str
)
def test_another_time_box_or_score_is_another_face(column: int, difference: float) -> None:
    """Also late in a long video, where seconds are large numbers."""
    frames = np.tile(np.array([600.0, 100.0, 100.0, 300.0, 300.0, 0.9], np.float32), (3, 1))
    frames[2] = [np.nan, np.nan, np.nan, np.nan, np.nan, 0]
    assert same_faces(frames, frames * np.float32(1 + 1e-7))
    other = frames.copy()
    other[1, column] += difference
    assert not same_faces(frames, other)
    other = frames.copy()
    other[1, 1:] = frames[2, 1:]
    assert not same_faces(frames, other)


def test_video_over_its_time_limit_fails(long_video: Path, extractor: FeatureExtractor) -> None:
    outcomes = list(extract_video(Job(long_video, windows((0, 2), (6, 8)), time_limit_s=0), extractor))
    assert all(isinstance(outcome, FailedWindow) for outcome in outcomes)
    assert "stopped after" in outcomes[0].reason
