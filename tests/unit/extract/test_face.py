"""Finding, following and cropping a face."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extract.face.cropper import FaceCropper, _open_detector, cut_square, iou, is_new_face
from extract.face.mediapipe_tasks import close_detector, detect_faces, open_detector
from extract.video.reader import read_video, sample_at
from features.recipe import Pixels
from seqmodel.encoders.model_files import detector_file, sha256_of


def cropper_of(*files: Path) -> FaceCropper:
    return FaceCropper(Pixels(tuple(sha256_of(file) for file in files)), files)


@pytest.fixture(scope="module")
def cropper(detector_path: Path):
    cropper = cropper_of(detector_path)
    yield cropper
    cropper.close()


@pytest.mark.parametrize(("name", "lowest", "highest"), [("single", 72, 72), ("carphone", 120, 120)])
def test_a_face_in_every_frame(
    cropper: FaceCropper, real_clips: dict[str, Path], name: str, lowest: int, highest: int
) -> None:
    cropper.reset()
    found = sum(cropper.crop(frame.rgb()).image is not None for frame in read_video(real_clips[name]))
    assert lowest <= found <= highest


@pytest.mark.slow
@pytest.mark.parametrize(("name", "expected"), [("pexels", 472), ("face_noface", 75), ("noface_face", 75)])
def test_as_many_faces_as_published(
    cropper: FaceCropper, real_clips: dict[str, Path], name: str, expected: int
) -> None:
    cropper.reset()
    found = sum(cropper.crop(frame.rgb()).image is not None for frame in read_video(real_clips[name]))
    assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pexels", "carphone", "face_noface", "group_photo"])
def test_short_detector_run_directly_equals_mediapipe(
    detector_path: Path, real_clips: dict[str, Path], name: str
) -> None:
    """The same faces: boxes equal up to MediaPipe's rounding to whole pixels, scores within 0.01."""
    if name == "group_photo":
        frames = [cv2.cvtColor(cv2.imread(str(real_clips[name])), cv2.COLOR_BGR2RGB)]
    else:
        frames = [frame.rgb() for _, frame in zip(range(150), read_video(real_clips[name]), strict=False)]
    direct, mediapipe_detector = (
        _open_detector(detector_path, sha256_of(detector_path), 1),
        open_detector(detector_path.read_bytes()),
    )
    by_mediapipe = [detect_faces(mediapipe_detector, rgb) for rgb in frames]
    close_detector(mediapipe_detector)
    for rgb, expected in zip(frames, by_mediapipe, strict=True):
        faces = direct.detect(rgb)
        assert len(faces) == len(expected)
        for face, wanted in zip(faces, expected, strict=True):
            np.testing.assert_allclose(face.box, wanted.box, rtol=0, atol=2)
            np.testing.assert_allclose(face.eyes, wanted.eyes, rtol=0, atol=0.5)
            assert face.score == pytest.approx(wanted.score, abs=0.01)
    assert any(by_mediapipe)


def test_frame_without_a_face_does_not_return_the_old_box(
    cropper: FaceCropper, real_clips: dict[str, Path]
) -> None:
    cropper.reset()
    with_face = next(read_video(real_clips["single"])).rgb()
    assert cropper.crop(with_face).image is not None
    nothing = cropper.crop(np.zeros_like(with_face))
    assert nothing.image is None
    assert nothing.score == 0
    assert np.isnan(nothing.box).all()


def test_cropper_follows_one_face_until_reset(cropper: FaceCropper, real_clips: dict[str, Path]) -> None:
    """Two faces next to each other: the face that came first is followed, although the other is larger."""
    face = next(read_video(real_clips["single"])).rgb()
    small = cv2.resize(face, None, fx=0.7, fy=0.7)
    two = np.zeros((face.shape[0], face.shape[1] + small.shape[1], 3), np.uint8)
    two[: small.shape[0], : small.shape[1]] = small
    alone = two.copy()
    two[:, small.shape[1] :] = face
    cropper.reset()
    first = cropper.crop(alone)
    kept = cropper.crop(two)
    assert iou(first.box, kept.box) > 0.9
    assert len(kept.others) == 1
    cropper.reset()
    largest = cropper.crop(two)
    assert largest.box[0] > small.shape[1] - 5
    assert iou(largest.others[0], kept.box) > 0.9


def test_another_face_is_new_and_a_real_face_stays_the_same(
    cropper: FaceCropper, real_clips: dict[str, Path]
) -> None:
    """A face in another place or of another size; no false alarm in real videos at 3 frames per second."""
    for name in ("pexels", "single", "carphone", "face_noface", "noface_face"):
        cropper.reset()
        assert not any(cropper.crop(f.rgb()).is_new for f in sample_at(read_video(real_clips[name]), 3)), name
    face = next(read_video(real_clips["single"])).rgb()
    aside = np.roll(face, -400, axis=1)
    cropper.reset()
    pictures = (face, face, aside, np.zeros_like(face), aside)
    assert [cropper.crop(picture).is_new for picture in pictures] == [False, False, True, False, False]
    box = (100.0, 100.0, 180.0, 200.0)
    others = [(195.0, 100.0, 275.0, 200.0), (205.0, 100.0, 285.0, 200.0), (60.0, 60.0, 220.0, 255.0)]
    others += [(60.0, 60.0, 220.0, 265.0), (120.0, 120.0, 160.0, 168.0)]
    assert [is_new_face(other, box) for other in others] == [False, True, False, True, True]


def test_the_full_range_model_finds_faces_the_short_one_misses(
    detector_path: Path, real_clips: dict[str, Path]
) -> None:
    photo = cv2.cvtColor(cv2.imread(str(real_clips["group_photo"])), cv2.COLOR_BGR2RGB)
    photo = cv2.copyMakeBorder(photo, *(4 * [250]), cv2.BORDER_REPLICATE)  # farther away
    short = cropper_of(detector_path)
    try:
        full_file = detector_file("full")
    except ValueError as error:
        pytest.skip(str(error))
    both = cropper_of(detector_path, full_file)
    assert short.crop(photo).image is None
    found = both.crop(photo)
    assert len(found.others) == 4
    short.close()
    both.close()


ABANDONED_DETECTORS = """
import gc, sys, torch
from pathlib import Path
from extract.face.cropper import FaceCropper
from extract.face.mediapipe_tasks import _open_detectors
from features.recipe import Pixels
from seqmodel.encoders.model_files import sha256_of

files = [Path(file) for file in sys.argv[1:]]
hashes = tuple(map(sha256_of, files))

class Collects(torch.nn.Module):
    def forward(self, x):
        gc.collect()
        return x + 1

def abandon(count):
    croppers = [FaceCropper(Pixels(hashes[:1]), files[:1]) for _ in range(count)]
    for cropper in croppers:
        cropper.itself = cropper  # a reference cycle: only the collector can find it
    try:
        FaceCropper(Pixels(hashes), files)
    except ValueError as error:
        return error  # its traceback holds the frames of a half-opened cropper

gc.disable()
error = abandon(2)
error.itself = error
del error
traced = torch.jit.trace(Collects(), torch.zeros(1))
print(traced(torch.zeros(1)).item(), len(_open_detectors))
"""


@pytest.mark.slow
def test_detectors_abandoned_in_a_cycle_do_not_stop_the_garbage_collector(tmp_path: Path) -> None:
    """MediaPipe's own destructor waits forever in this case. A cropper that cannot be opened leaves no
    detector open."""
    try:
        full_file = detector_file("full")
    except ValueError as error:
        pytest.skip(str(error))
    (tmp_path / "text.tflite").write_text("no model", encoding="utf-8")
    command = [sys.executable, "-W", "ignore", "-c", ABANDONED_DETECTORS, full_file, tmp_path / "text.tflite"]
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["1.0", "2"], "")


def test_the_number_of_files_must_fit_the_recipe(detector_path: Path) -> None:
    with pytest.raises(ValueError, match="1 detectors, got 2 files"):
        FaceCropper(Pixels((sha256_of(detector_path),)), (detector_path, detector_path))


def test_error_names_a_file_that_is_not_a_detector(tmp_path: Path) -> None:
    (tmp_path / "text.tflite").write_text("no model", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.tflite is not a MediaPipe face detector"):
        cropper_of(tmp_path / "text.tflite")


def test_a_crop_is_one_plain_resize_of_the_square() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    crop = cut_square(rgb, (100, 50, 180, 130), margin=0.25, crop_px=64)
    assert np.array_equal(crop, cv2.resize(rgb[30:150, 80:200], (64, 64), interpolation=cv2.INTER_LINEAR))


def test_large_square_is_halved_before_interpolation() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8)
    crop = cut_square(rgb, (100, 50, 180, 130), margin=0.25, crop_px=28)
    halved_twice = rgb[30:150, 80:200].reshape(30, 4, 30, 4, 3).mean((1, 3))
    expected = cv2.resize(halved_twice, (28, 28), interpolation=cv2.INTER_LINEAR)
    assert np.abs(crop - expected).max() <= 2, "equal up to rounding"
    grey = np.zeros((200, 300, 3), np.uint8)
    grey[::2, ::2] = grey[1::2, 1::2] = 254
    chequerboard = cut_square(grey, (100, 50, 179, 129), margin=0.25, crop_px=28)
    assert np.ptp(chequerboard) == 0, "every pixel is grey"


def test_outside_the_frame_is_black() -> None:
    rgb = np.full((100, 100, 3), 255, np.uint8)
    crop = cut_square(rgb, (-20, -20, 20, 20), margin=0, crop_px=40)
    assert (crop[:20] == 0).all()
    assert (crop[:, :20] == 0).all()
    assert (crop[20:, 20:] == 255).all()


@settings(deadline=None)  # other processes may use the processor
@given(
    box=st.tuples(*[st.floats(-400, 700) for _ in range(2)], *[st.floats(0.1, 500) for _ in range(2)]),
    margin=st.floats(0, 2),
)
def test_any_box_gives_a_crop(box: tuple[float, ...], margin: float) -> None:
    x, y, width, height = box
    crop = cut_square(np.full((120, 160, 3), 9, np.uint8), (x, y, x + width, y + height), margin, 32)
    assert crop.shape == (32, 32, 3)
    assert crop.dtype == np.uint8
