"""Prediction on a sliding window of the newest sampled frames.

Every sampled frame goes through detector and encoder exactly once; a ring buffer holds the last T
embeddings, and the head reads the whole window each time. A window that is not full is padded at the end and
masked, like a short clip in files.

Shapes: T frames, D embedding, G geometry, C classes.
"""

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from extract.face.cropper import Crop, FaceCropper
from extract.video.reader import EARLY_S, Frame, Sampler
from features.cli import UserError
from features.face_signals import strongest_signals
from live.inference.model import THREADS, LiveModel, open_model
from live.inference.state_machine import DisplayState, State, StateRule, next_display_state
from seqmodel.metrics.calibration import decide

SMOOTHING_S = 1.0
"""Time constant of the average over logits: three sampled frames, much shorter than a window of 10 s."""


@dataclass(frozen=True)
class Prediction:
    """Prediction and measurements after one sampled frame."""

    t_s: float
    """Time of the sampled frame, seconds."""
    state: State
    label: str
    """The predicted class; empty unless the state is `ok`."""
    names: tuple[str, ...]
    """The C class names."""
    task: str
    logits: tuple[float, ...]
    """The head's raw output for this window, C' numbers."""
    p_raw: tuple[float, ...]
    """Calibrated probabilities of this window alone, C numbers."""
    p: tuple[float, ...]
    """Probabilities after smoothing over time, C numbers."""
    coverage: float
    """Share of the window's frames that hold a face, 0..1."""
    filled: float
    """Share of the window that is filled, 0..1."""
    box: tuple[float, float, float, float] | None
    """Face box x0, y0, x1, y1 in pixels of the frame; None without a face."""
    others: tuple[tuple[float, float, float, float], ...]
    """Boxes of the faces that are not followed."""
    latency_ms: float
    """Time from the frame's arrival to this prediction."""
    novelty: float = math.nan
    """Distance of this frame's embedding from the training data: mean squared standard score, 1 on average
    over the training frames; NaN without a face."""
    new_face: bool = False
    """Whether the face is probably another person's than before (`is_new_face`): the window was emptied."""
    signals: Mapping[str, float] = field(default_factory=dict)
    """The strongest geometry signals of this frame, by name; empty without geometry."""

    @property
    def face(self) -> bool:
        """Whether this frame holds a face."""
        return self.box is not None


@dataclass(frozen=True)
class WindowFrame:
    """One sampled frame as the window keeps it."""

    t_s: float
    embedding: np.ndarray
    """(D,) float16, zeros without a face."""
    face: bool
    geometry: np.ndarray | None
    """(G,) float32, NaN where it was not computed; None without a face or geometry."""


class Predictor:
    """Takes frames in order of time and predicts at each sampled frame."""

    def __init__(self, run: Path | LiveModel, *, rule: StateRule | None = None) -> None:
        self.model = run if isinstance(run, LiveModel) else open_model(run)
        known = self.model.min_filled
        self.rule = rule or (StateRule(min_filled=known) if known else StateRule())
        self.calibration = self.model.card.calibration
        pixels = self.model.card.recipe.pixels
        assert pixels is not None  # open_model refused others
        self._pixels = pixels
        self._cropper = FaceCropper(pixels, self.model.detector_files, THREADS)
        self._geometry = _open_geometry(self.model)
        self._reads_embeddings = "embeddings" in self.model.card.dims
        self._window: deque[WindowFrame] = deque(maxlen=pixels.num_frames)
        self.num_encoded = 0
        """Number of encoded faces; tests check that each face is encoded once."""
        self.reset()

    def reset(self, start_s: float = 0.0) -> None:
        """Clear the window and the followed face, as at the start of another video.

        start_s: time of the first sample; 0 is the start of a file and the opening of a camera.
        """
        self._sampler = Sampler(self._pixels.fps, start_s)
        self._window.clear()
        self._cropper.reset()
        self._smoothed: np.ndarray | None = None
        self._smoothed_s = start_s
        self._since_s: float | None = None
        self._display = DisplayState()

    def push(self, frame: Frame) -> Prediction | None:
        """The prediction after this frame, or None for a frame between two sampled ones.

        Raises UserError when the frame is older than the one before it.
        """
        if self._window and frame.pts_s < self._window[-1].t_s:
            raise UserError(
                f"frames must come in order of time: {frame.pts_s} s after {self._window[-1].t_s} s"
            )
        if not self._sampler.takes(frame.pts_s):
            return None
        arrived, crop = time.perf_counter(), self._add_to_window(frame)
        return self._predict(frame.pts_s, crop, self.window_logits(), arrived)

    def window_logits(self) -> np.ndarray:
        """The head's logits for the current window, (C',) float32."""
        x, valid = self.window()
        return self.model.head(x, valid)

    def window(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The window as the head reads it: streams (T, D) and valid (T,) bool, padded at the end.

        Values are zero where not valid, as from the store's reader.
        """
        num_frames, dims = self._pixels.num_frames, self.model.card.dims
        streams = {name: np.zeros((num_frames, dim), np.float32) for name, dim in dims.items()}
        valid = {name: np.zeros(num_frames, bool) for name in dims}
        for index, entry in enumerate(self._window):
            if "embeddings" in dims and entry.face:
                streams["embeddings"][index], valid["embeddings"][index] = entry.embedding, True
            if "geometry" in dims and entry.geometry is not None and not np.isnan(entry.geometry).any():
                streams["geometry"][index], valid["geometry"][index] = entry.geometry, True
        return streams, valid

    def close(self) -> None:
        """Free the detector."""
        self._cropper.close()
        if self._geometry is not None:
            self._geometry.close()

    def _add_to_window(self, frame: Frame) -> Crop:
        """Add one sampled frame to the window and drop frames older than a window."""
        rgb = frame.rgb()
        crop = self._cropper.crop(rgb)
        if crop.is_new:
            self._window.clear()
            self._smoothed = None
        embedding = np.zeros(self.model.card.recipe.encoder.dim, np.float16)
        if crop.image is not None and self._reads_embeddings:
            assert self.model.engine is not None  # open_model made it for this stream
            embedding = self.model.engine.embed(crop.image[None])[0]
            self.num_encoded += 1
        geometry = (
            self._geometry.measure(rgb, crop)
            if self._geometry is not None and crop.image is not None
            else None
        )
        self._window.append(WindowFrame(frame.pts_s, embedding, crop.image is not None, geometry))
        # After a gap the buffer may hold old frames: a window is at most window_s long.
        while frame.pts_s - self._window[0].t_s >= self._pixels.window_s - EARLY_S:
            self._window.popleft()
        if len(self._window) == 1:  # the first frame, also of another face or after a long gap
            self._since_s, self._display = frame.pts_s, DisplayState()
        return crop

    def _filled(self, t_s: float) -> float:
        """Share of the window that is filled since the last gap, 0..1.

        By time, not by number of frames: a slow camera fills its window too. Since the gap, not since the
        oldest frame in the window, whose age varies with the camera's frame times.
        """
        assert self._since_s is not None  # a frame has come
        return min(1.0, (t_s - self._since_s + 1 / self._pixels.fps) / self._pixels.window_s)

    def _predict(self, t_s: float, crop: Crop, logits: np.ndarray, arrived: float) -> Prediction:
        card = self.model.card
        task, names = card.labelling.task, card.labelling.names
        coverage = sum(entry.face for entry in self._window) / len(self._window)
        filled = self._filled(t_s)
        smoothed = self._smooth(logits, t_s)
        raw, decision = (decide(z[None], task, self.calibration) for z in (logits, smoothed))
        self._display = next_display_state(
            self._display,
            # Frame times vary around the sampling times: half a sample of tolerance.
            filled=filled + 0.5 / self._pixels.num_frames,
            coverage=coverage,
            label=int(decision.label[0]),
            unsure=bool(decision.unsure[0]),
            rule=self.rule,
        )
        shown = self._display.shown
        return Prediction(
            t_s=t_s,
            state=shown.state,
            label=names[shown.label] if shown.label is not None else "",
            names=names,
            task=task,
            logits=tuple(logits.tolist()),
            p_raw=tuple(raw.probabilities[0].tolist()),
            p=tuple(decision.probabilities[0].tolist()),
            coverage=coverage,
            filled=filled,
            box=crop.box if crop.image is not None else None,
            others=crop.others,
            latency_ms=(time.perf_counter() - arrived) * 1e3,
            novelty=self._novelty(),
            new_face=crop.is_new,
            signals=self._signals(),
        )

    def _novelty(self) -> float:
        """Novelty of the newest frame; see `Prediction.novelty`."""
        latest = self._window[-1]
        if not latest.face or not self._reads_embeddings:
            return math.nan
        mean, std = self.model.statistics["embeddings"]
        return float(np.mean(((latest.embedding - mean) / std) ** 2))

    def _signals(self) -> dict[str, float]:
        """Signals of the newest frame; see `Prediction.signals`."""
        geometry, identity = self._window[-1].geometry, self.model.card.recipe.geometry
        if geometry is None or identity is None or np.isnan(geometry).any():
            return {}
        found = strongest_signals(geometry[None], identity.features)
        return {name: float(values[0]) for name, values in found.items()}

    def _smooth(self, logits: np.ndarray, t_s: float) -> np.ndarray:
        """Exponential average of the logits with time constant SMOOTHING_S, for any intervals."""
        if self._smoothed is None:
            self._smoothed = logits.astype(np.float64)
        else:
            keep = math.exp(-(t_s - self._smoothed_s) / SMOOTHING_S)
            self._smoothed = keep * self._smoothed + (1 - keep) * logits
        self._smoothed_s = t_s
        return self._smoothed


def _open_geometry(model: LiveModel) -> Any:
    """The FaceGeometry of the run, or None when there is no landmarker file."""
    if model.landmarker_file is None:
        return None
    from extract.face.geometry import FaceGeometry

    assert model.card.recipe.geometry is not None  # open_model found its file by it
    return FaceGeometry(model.card.recipe.geometry, model.landmarker_file, THREADS)
