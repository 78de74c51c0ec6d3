"""live/predictor.py: one pass per sampled frame, windows as in files, nothing kept past its time."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from extract.video import Frame, read_video, sample_at
from live.model import LiveModel, open_model
from live.predictor import Prediction, Predictor
from tests.small_run import write_run


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
    """A face in all frames of the clip: as many encoder passes as sampled frames, not one more."""
    predictions = push_all(predictor, read_video(real_clips["pexels"]))
    sampled = list(sample_at(read_video(real_clips["pexels"]), 3))
    assert [p.t_s for p in predictions] == [frame.pts_s for frame in sampled]
    assert predictor.num_encoded == len(sampled) == 59


def test_frames_between_samples_are_not_even_converted(predictor: Predictor, portrait: np.ndarray) -> None:
    """Pixels of a frame that is not sampled are never asked for."""
    asked = []

    def frame(k: int) -> Frame:
        return Frame(k / 30, lambda: asked.append(k) or portrait)  # type: ignore[func-returns-value]

    push_all(predictor, (frame(k) for k in range(60)))
    assert asked == [0, 10, 20, 30, 40, 50]


def test_a_frame_without_a_face_is_masked_and_zero(predictor: Predictor, real_clips: dict[str, Path]) -> None:
    """No face: valid is False, the embedding zero, no pass through the encoder, no box."""
    predictions = push_all(predictor, read_video(real_clips["no_face"]))
    x, valid = predictor.window()
    assert not valid["embeddings"].any()
    assert not x["embeddings"].any()
    assert predictor.num_encoded == 0
    assert all(p.box is None and not p.face and p.coverage == 0 for p in predictions)


def test_no_face_is_a_state_and_never_a_class(predictor: Predictor, real_clips: dict[str, Path]) -> None:
    """Ten seconds without a face name no class."""
    black = np.zeros((120, 160, 3), np.uint8)
    predictions = push_all(predictor, still(black, 10, 12))
    assert predictions[-1].state == "no_face"
    assert {p.label for p in predictions} == {""}


def test_frame_rate_does_not_change_what_is_said(model: LiveModel, portrait: np.ndarray) -> None:
    """The same scene at 10, 15, 30 and 60 frames a second and at irregular times: the same faces, the same
    logits, the same decisions, sample by sample."""
    black = np.zeros_like(portrait)

    def scene(t_s: float) -> np.ndarray:
        return black if 4.2 < t_s < 6.2 else portrait

    irregular = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.09, 160))
    times = [np.arange(0, 8, 1 / fps) for fps in (10, 15, 30, 60)] + [irregular[irregular < 8] - irregular[0]]
    told = []
    for camera in times:
        predictor = Predictor(model)
        frames = (Frame(float(t_s), scene(float(t_s))) for t_s in camera)
        told.append([(p.face, p.state, p.label, p.logits) for p in push_all(predictor, frames)])
        predictor.close()
    assert [len(predictions) for predictions in told] == [24] * 5
    assert [face for face, *_ in told[0]].count(False) == 6
    assert all(predictions == told[0] for predictions in told)


def test_a_gap_empties_the_window(predictor: Predictor, portrait: np.ndarray) -> None:
    """Frames older than a window are let go, however few came since."""
    push_all(predictor, still(portrait, 3, 10))
    prediction = push_all(predictor, still(portrait, 3, 1 / 3, start_s=100.0))[0]
    assert prediction.filled == pytest.approx(1 / 30)
    assert prediction.state == "warming_up"
    assert predictor.window()[1]["embeddings"].sum() == 1


def test_short_windows_are_padded_at_the_end(predictor: Predictor, portrait: np.ndarray) -> None:
    """Five frames stand first, the rest is masked."""
    push_all(predictor, still(portrait, 3, 5 / 3))
    x, valid = predictor.window()
    assert valid["embeddings"].tolist() == [True] * 5 + [False] * 25
    assert x["embeddings"].shape == (30, 960)


def test_reset_forgets(predictor: Predictor, portrait: np.ndarray) -> None:
    """After a reset the same video gives the same predictions."""
    first = push_all(predictor, still(portrait, 6, 4))
    predictor.reset()
    again = push_all(predictor, still(portrait, 6, 4))
    assert [replace(p, latency_ms=0) for p in first] == [replace(p, latency_ms=0) for p in again]


def test_frames_out_of_order_are_refused(predictor: Predictor, portrait: np.ndarray) -> None:
    """Time runs forwards."""
    predictor.push(Frame(1.0, portrait))
    with pytest.raises(ValueError, match="order of time"):
        predictor.push(Frame(0.5, portrait))


def test_a_run_that_lost_its_detector_is_refused(tmp_path: Path, detector_path: Path) -> None:
    """The run's own detector file is the only one that counts."""
    run = write_run(tmp_path / "run", detector_path)
    (run / "detector" / "detector.tflite").unlink()
    with pytest.raises(ValueError, match="lacks the face detector"):
        open_model(run)
