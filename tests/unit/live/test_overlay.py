"""Tests of live/ui/overlay.py: visible on any background, and with Hangul."""

from dataclasses import replace

import numpy as np
import pytest

from live.inference.state_machine import STATES
from live.ui.drawing import TRACK, colour_of
from live.ui.overlay import (
    KEYS,
    MIN_WIDTH_PX,
    Status,
    draw,
    draw_boxes,
    filled_text,
    timeline_point,
    value_text,
)
from live.ui.timeline import TimelinePoint, paint_timeline, row_s
from tests.support.predictions import prediction

POINTS = [
    TimelinePoint(k / 3, STATES[k % 6], float("nan") if k % 6 > 2 else (k % 10) / 10) for k in range(60)
]


@pytest.mark.parametrize(
    "shape", [(120, 160, 3), (144, 176, 3), (480, 640, 3), (1080, 1920, 3), (855, 481, 3)]
)
def test_any_size_gives_an_even_picture_wide_enough_for_the_panel(shape: tuple[int, int, int]) -> None:
    """Codecs need even sides; the panel needs MIN_WIDTH_PX."""
    image = np.full(shape, 128, np.uint8)
    picture = draw(image, prediction(), POINTS, Status())
    assert picture.dtype == np.uint8
    assert picture.shape[0] % 2 == picture.shape[1] % 2 == 0
    assert picture.shape[1] >= max(MIN_WIDTH_PX, shape[1] - 1)


@pytest.mark.parametrize("brightness", [0, 255])
def test_box_is_visible_on_any_background(brightness: int) -> None:
    """Some pixels of the box's edge differ strongly from the background."""
    image = np.full((480, 640, 3), brightness, np.uint8)
    picture = draw(image, prediction(), [], Status())
    edge = picture[120, 94:106].astype(int)
    assert np.abs(edge - brightness).max() > 150


@pytest.mark.parametrize("brightness", [0, 255])
def test_panel_does_not_depend_on_the_video(brightness: int) -> None:
    """The panel is below the picture, so its contrast is the same for any video."""
    panels = [
        draw(np.full((480, 640, 3), value, np.uint8), prediction(), POINTS, Status())[480:]
        for value in (brightness, 77)
    ]
    assert np.array_equal(*panels)


def test_drawing_twice_gives_the_same_picture_and_keeps_the_frame() -> None:
    """`draw` has no state and does not change the frame."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    before = image.copy()
    first, again = (draw(image, prediction(), POINTS, Status(message="look here")) for _ in range(2))
    assert np.array_equal(first, again)
    assert np.array_equal(image, before)


def test_hangul_labels_are_drawn_and_differ() -> None:
    """Two Korean class names of one length give different pictures: no placeholder boxes."""
    image = np.zeros((480, 640, 3), np.uint8)
    names = [prediction(label=label, names=("졸음", "집중")) for label in ("졸음", "집중")]
    first, other = (draw(image, p, [], Status())[480:] for p in names)
    assert not np.array_equal(first, other)


def test_recording_changes_the_panel() -> None:
    """The panel shows whether the session is recorded."""
    image = np.zeros((480, 640, 3), np.uint8)
    quiet, recording = (draw(image, None, [], Status(recording=on)) for on in (False, True))
    assert not np.array_equal(quiet, recording)


def test_notice_is_a_line_of_its_own_below_the_panel() -> None:
    """The picture and the panel above the notice do not change; the demo's notice ends before the edge."""
    image = np.zeros((480, 640, 3), np.uint8)
    notice = "SYNTHETIC DATA: made from one portrait, labels by construction"
    plain = draw(image, prediction(), POINTS, Status())
    first, other = (draw(image, prediction(), POINTS, Status(notice=text)) for text in (notice, notice[:-1]))
    assert len(first) > len(plain)
    changed = (first != other).any(axis=2)
    assert changed.any()
    assert not changed[: len(plain) - 4].any()
    assert not changed[:, -2:].any()


def test_signals_are_drawn_only_on_request() -> None:
    """At the picture's lower left, by their values; not without the option or without geometry."""
    image = np.full((480, 640, 3), 90, np.uint8)
    wide = prediction(signals={"eyes open": 0.9, "gaze": -0.5, "yaw": 0.2})
    closed = replace(wide, signals=wide.signals | {"eyes open": 0.1})
    plain = draw(image, wide, [], Status())
    shown, other = (draw(image, p, [], Status(shows_signals=True)) for p in (wide, closed))
    assert not np.array_equal(shown, plain)
    assert not np.array_equal(shown, other)
    assert np.array_equal(shown[:200], plain[:200])
    assert np.array_equal(shown[480:], plain[480:])
    assert np.array_equal(draw(image, prediction(), [], Status(shows_signals=True)), plain)


@pytest.mark.parametrize("shape", [(120, 160, 3), (480, 640, 3), (855, 481, 3), (1080, 1920, 3)])
def test_line_of_keys_fits_at_any_size(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int]) -> None:
    """The last character changes the panel, and the line ends before the edge."""
    image = np.zeros(shape, np.uint8)
    whole = draw(image, prediction(), [], Status(personal="민수"))
    monkeypatch.setattr("live.ui.overlay.KEYS", KEYS[:-1])
    changed = (whole != draw(image, prediction(), [], Status(personal="민수"))).any(axis=2)
    assert changed.any()
    assert not changed[:, -2:].any()
    assert not changed[-1].any()


def test_filled_window_is_shown() -> None:
    """Also in state ok, until the window is full."""
    image = np.zeros((480, 900, 3), np.uint8)
    assert filled_text(prediction(filled=0.6)) == "window 60% full"
    assert filled_text(prediction(filled=1.0)) == ""
    panels = [draw(image, prediction(filled=f), [], Status())[480:].tobytes() for f in (0.6, 1.0)]
    assert panels[0] != panels[1]


@pytest.mark.parametrize(
    ("task", "p", "figure"),
    [
        ("binary", (0.3, 0.7), "engaged 70%"),
        ("ordinal", (0.1, 0.7, 0.2), "level 55%"),
        ("multiclass", (0.1, 0.7, 0.2), "70%"),
    ],
)
def test_value_of_the_bar_is_named_by_task(task: str, p: tuple[float, ...], figure: str) -> None:
    """An expected level is not a class probability; only with two classes the class is named."""
    names = ("distracted", "engaged") if len(p) == 2 else ("low", "middle", "high")
    shown = prediction(task=task, p=p, names=names, label=names[1])
    assert value_text(shown) == figure
    assert draw(np.zeros((480, 640, 3), np.uint8), shown, [], Status()).shape[1] == 640


def test_slow_timeline_has_no_holes_and_a_gap_is_empty() -> None:
    """One frame every two seconds and a gap of 30 s; at three frames/s, two seconds are a gap."""
    slow = [TimelinePoint(2.0 * k + (30.0 if k >= 15 else 0.0), "ok", 0.5) for k in range(30)]
    quick = [TimelinePoint(k / 3 + (2.0 if k >= 15 else 0.0), "ok", 0.5) for k in range(30)]
    assert (row_s(slow), row_s(quick)) == (4.0, 1.0)
    for points, hole_s in ((slow, 28.0), (quick, 4 / 3)):
        length_s = points[-1].t_s - points[0].t_s
        area = np.zeros((20, 600, 3), np.uint8)
        paint_timeline(area, points, 0.0, length_s)
        empty = (area[-1] == TRACK).all(axis=1)
        assert empty.sum() == pytest.approx(hole_s / length_s * 600, abs=2)


def test_scene_for_the_browser_has_only_the_boxes() -> None:
    """Outside the box lines the picture is unchanged."""
    image = np.full((480, 640, 3), 90, np.uint8)
    scene = draw_boxes(image, prediction())
    assert scene.shape == image.shape
    assert (scene != image).any(axis=2).mean() < 0.02
    assert np.array_equal(draw_boxes(image, None), image)


def test_each_class_has_its_colour_and_a_missing_prediction_no_height() -> None:
    """The first and the last class differ in colour; no face is no level."""
    first, last = (
        colour_of("ok", timeline_point(prediction(label=name)).tone) for name in ("distracted", "engaged")
    )
    assert first != last
    assert np.isnan(timeline_point(prediction(state="no_face", label="")).level)
