"""Tests of the live predictor: one encoder pass per sampled frame, the same windows as from files."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.face.cropper import Crop
from extract.face.geometry import FEATURES
from extract.video.reader import Frame, read_video, sample_at
from features.face_signals import strongest_signals
from live.batch import predict_video
from live.inference.model import LiveModel, open_model
from live.inference.predictor import Prediction, Predictor
from live.inference.state_machine import StateRule
from live.output.log_reader import read_log
from tests.support.clips import write_video
from tests.support.small_run import write_run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, detector_path: Path) -> LiveModel:
    """A small run, opened once."""
    return open_model(write_run(tmp_path_factory.mktemp("runs") / "작은 run", detector_path))


@pytest.fixture
def predictor(model: LiveModel) -> Iterator[Predictor]:
    """A predictor of that run."""
    predictor = Predictor(model)
    yield predictor
    predictor.close()


@pytest.fixture(scope="module")
def portrait() -> np.ndarray:
    """A picture with one face, uint8 (512, 512, 3) RGB."""
    from skimage.data import astronaut

    return astronaut()


def push_all(predictor: Predictor, frames: Iterator[Frame]) -> list[Prediction]:
    """Every prediction that the frames give."""
    return [prediction for frame in frames if (prediction := predictor.push(frame)) is not None]


def still(image: np.ndarray, fps: float, seconds: float, start_s: float = 0.0) -> Iterator[Frame]:
    """One picture as a video."""
    return (Frame(start_s + k / fps, image) for k in range(round(fps * seconds)))


def test_each_sampled_frame_is_encoded_exactly_once(
    predictor: Predictor, real_clips: dict[str, Path]
) -> None:
    """With a face in every frame, the number of encoder calls is the number of sampled frames."""
    predictions = push_all(predictor, read_video(real_clips["pexels"]))
    sampled = list(sample_at(read_video(real_clips["pexels"]), 3))
    assert [p.t_s for p in predictions] == [frame.pts_s for frame in sampled]
    assert predictor.num_encoded == len(sampled) == 59


def test_frames_between_samples_are_not_converted_to_rgb(predictor: Predictor, portrait: np.ndarray) -> None:
    """The pixels of a frame that is not sampled are never read."""
    converted = []

    def frame(k: int) -> Frame:
        return Frame(k / 30, lambda: converted.append(k) or portrait)  # type: ignore[func-returns-value]

    push_all(predictor, (frame(k) for k in range(60)))
    assert converted == [0, 10, 20, 30, 40, 50]


def test_frame_without_a_face_is_masked_and_zero(predictor: Predictor, real_clips: dict[str, Path]) -> None:
    """No face: valid is False, the embedding is zero, the encoder is not called, there is no box."""
    predictions = push_all(predictor, read_video(real_clips["no_face"]))
    x, valid = predictor.window()
    assert not valid["embeddings"].any()
    assert not x["embeddings"].any()
    assert predictor.num_encoded == 0
    assert all(p.box is None and not p.face and p.coverage == 0 for p in predictions)


def test_no_face_is_a_state_without_a_class(predictor: Predictor, real_clips: dict[str, Path]) -> None:
    """Ten seconds without a face give no class."""
    black = np.zeros((120, 160, 3), np.uint8)
    predictions = push_all(predictor, still(black, 10, 12))
    assert predictions[-1].state == "no_face"
    assert {p.label for p in predictions} == {""}


def test_frame_rate_does_not_change_predictions(model: LiveModel, portrait: np.ndarray) -> None:
    """The same scene at 10, 15, 30 and 60 frames/s and at irregular times gives the same faces, logits and
    decisions at each sample."""
    black = np.zeros_like(portrait)

    def scene(t_s: float) -> np.ndarray:
        return black if 4.2 < t_s < 6.2 else portrait

    irregular = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.09, 160))
    times = [np.arange(0, 8, 1 / fps) for fps in (10, 15, 30, 60)] + [irregular[irregular < 8] - irregular[0]]
    by_rate = []
    for camera in times:
        predictor = Predictor(model)
        frames = (Frame(float(t_s), scene(float(t_s))) for t_s in camera)
        by_rate.append([(p.face, p.state, p.label, p.logits) for p in push_all(predictor, frames)])
        predictor.close()
    assert [len(predictions) for predictions in by_rate] == [24] * 5
    assert [face for face, *_ in by_rate[0]].count(False) == 6
    assert all(predictions == by_rate[0] for predictions in by_rate)


def test_gap_empties_the_window(predictor: Predictor, portrait: np.ndarray) -> None:
    """Frames older than a window are dropped, however few frames follow."""
    push_all(predictor, still(portrait, 3, 10))
    prediction = push_all(predictor, still(portrait, 3, 1 / 3, start_s=100.0))[0]
    assert prediction.filled == pytest.approx(1 / 30)
    assert prediction.state == "warming_up"
    assert predictor.window()[1]["embeddings"].sum() == 1


def test_another_face_empties_the_window(predictor: Predictor, portrait: np.ndarray, tmp_path: Path) -> None:
    """The window has no frame of the face before; `predict` marks the row."""
    pictures = [portrait] * 18 + [np.roll(portrait, 200, axis=1)] * 3
    predictions = push_all(predictor, (Frame(k / 3, picture) for k, picture in enumerate(pictures)))
    assert [k for k, p in enumerate(predictions) if p.new_face] == [18]
    assert [p.state for p in predictions[17:]] == ["ok", "warming_up", "warming_up", "warming_up"]
    assert predictor.window()[1]["embeddings"].sum() == 3
    video = write_video(tmp_path / "two.mp4", [p for picture in pictures for p in [picture] * 2], 6)
    predict_video(predictor, video, tmp_path / "two.csv")
    marks = [row.mark for row in read_log(tmp_path / "two.csv")[1]]
    assert marks == [""] * 18 + ["new face"] + [""] * 2


@pytest.mark.parametrize("fps", [1.0, 2.5, 10.0, 30.0])
@pytest.mark.parametrize("min_filled", [0.5, 1.0])
def test_warming_up_ends_once(model: LiveModel, fps: float, min_filled: float) -> None:
    """With irregular frame times, at any frame rate, and for a full window: it ends when that share has
    passed, and starts again only after a gap as long as the window."""
    black = np.zeros((48, 64, 3), np.uint8)
    rng = np.random.default_rng(0)
    times = [k / fps + rng.uniform(0, 0.45) / fps for k in range(round(40 * fps))]
    predictor = Predictor(model, rule=StateRule(min_filled=min_filled))
    predictions = push_all(predictor, (Frame(t_s, black) for t_s in times))
    warm = [p.t_s for p in predictions if p.state == "warming_up"]
    assert warm == [p.t_s for p in predictions][: len(warm)]
    assert warm[-1] - times[0] == pytest.approx(10 * min_filled, abs=1.5 / min(fps, 3) + 0.2)
    assert [p.filled for p in predictions] == sorted(p.filled for p in predictions)
    later = push_all(predictor, iter([Frame(60.0, black), Frame(60.4, black)]))
    assert [p.state for p in later] == ["warming_up"] * 2
    predictor.close()


def test_short_windows_are_padded_at_the_end(predictor: Predictor, portrait: np.ndarray) -> None:
    """Five frames come first, the others are masked."""
    push_all(predictor, still(portrait, 3, 5 / 3))
    x, valid = predictor.window()
    assert valid["embeddings"].tolist() == [True] * 5 + [False] * 25
    assert x["embeddings"].shape == (30, 960)


def test_reset_gives_the_same_predictions_again(predictor: Predictor, portrait: np.ndarray) -> None:
    """After a reset the same video gives the same predictions."""
    first = push_all(predictor, still(portrait, 6, 4))
    predictor.reset()
    again = push_all(predictor, still(portrait, 6, 4))
    assert [replace(p, latency_ms=0) for p in first] == [replace(p, latency_ms=0) for p in again]


def test_frames_out_of_order_are_refused(predictor: Predictor, portrait: np.ndarray) -> None:
    """Frame times must increase."""
    predictor.push(Frame(1.0, portrait))
    with pytest.raises(ValueError, match="order of time"):
        predictor.push(Frame(0.5, portrait))


@pytest.fixture
def both(tmp_path: Path, detector_path: Path, landmarker_path: Path) -> Path:
    """A run that reads both streams."""
    return write_run(
        tmp_path / "both", detector_path, landmarker=landmarker_path, inputs=("embeddings", "geometry")
    )


def test_run_of_both_streams_works_without_its_landmarker(
    both: Path, portrait: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    """Geometry is then never valid, with a warning; the embeddings are used."""
    (both / "detector" / "face_landmarker.task").unlink()
    predictor = Predictor(open_model(both))
    assert "using embeddings only" in " ".join(capsys.readouterr().err.split())
    prediction = push_all(predictor, still(portrait, 3, 6))[-1]
    _, valid = predictor.window()
    assert prediction.state in ("ok", "unsure")
    assert valid["embeddings"].sum() == 18
    assert not valid["geometry"].any()
    assert prediction.signals == {}
    predictor.close()


def test_run_of_geometry_without_its_landmarker_is_refused(
    tmp_path: Path, detector_path: Path, landmarker_path: Path
) -> None:
    """It has no other input."""
    run = write_run(tmp_path / "run", detector_path, landmarker=landmarker_path, inputs=("geometry",))
    (run / "detector" / "face_landmarker.task").unlink()
    with pytest.raises(ValueError, match=r"face landmarker of this run .* is missing"):
        open_model(run)


def test_masking_a_fifth_of_the_geometry_changes_the_logits_little(both: Path, portrait: np.ndarray) -> None:
    """Frames without geometry are masked: no NaN reaches the head, the state is the same, and only these
    frames have no signals."""
    predictor = Predictor(open_model(both))
    whole = push_all(predictor, still(portrait, 3, 9))
    predictor.reset()
    measure = predictor._geometry.measure
    count = 0

    def sometimes(rgb: np.ndarray, crop: Crop) -> np.ndarray:
        nonlocal count
        count += 1
        return np.full_like(measure(rgb, crop), np.nan) if count % 5 == 0 else measure(rgb, crop)

    predictor._geometry.measure = sometimes
    lossy = push_all(predictor, still(portrait, 3, 9))
    _, valid = predictor.window()
    predictor.close()
    assert valid["geometry"].sum() == 22
    assert valid["embeddings"].sum() == 27
    assert [p.state for p in lossy] == [p.state for p in whole]
    assert np.isfinite([p.p for p in lossy]).all()
    np.testing.assert_allclose([p.p for p in lossy], [p.p for p in whole], atol=0.2)
    assert [bool(p.signals) for p in lossy] == [k % 5 != 4 for k in range(27)]


def test_signals_are_those_of_the_reports(both: Path, portrait: np.ndarray) -> None:
    """Eyes, gaze and yaw of the newest frame, as in the reports."""
    predictor = Predictor(open_model(both))
    prediction = push_all(predictor, still(portrait, 3, 2))[-1]
    x, _ = predictor.window()
    predictor.close()
    wanted = strongest_signals(x["geometry"][5:6], FEATURES)
    assert prediction.signals == {name: float(values[0]) for name, values in wanted.items()}
    assert 0.3 < prediction.signals["eyes open"] <= 1


def test_run_without_its_detector_is_refused(tmp_path: Path, detector_path: Path) -> None:
    """Only the run's own detector file is accepted."""
    run = write_run(tmp_path / "run", detector_path)
    (run / "detector" / "detector.tflite").unlink()
    with pytest.raises(ValueError, match=r"face detector of this run .* is missing"):
        open_model(run)
