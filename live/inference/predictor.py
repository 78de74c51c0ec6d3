"""From frames to predictions: the window that slides over the newest sampled frames.

Every sampled frame goes through detector and encoder exactly once; its embedding stays in a ring of the
last T, and the head re-reads the whole window each time. A window that is not full yet is padded at the
end and masked, as a short clip is in files.

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
from features.face_signals import strongest_signals
from live.inference.model import THREADS, LiveModel, open_model
from live.inference.state_machine import DisplayState, State, StateRule, next_display_state
from seqmodel.heads.person_baseline import subtract_mean
from seqmodel.metrics.calibration import decide

SMOOTHING_S = 1.0
"""Time constant of the average over logits: three sampled frames, well below the window's own ten seconds."""
NORMAL_S = 60.0
"""From so many seconds of a person's face their normal is learned; then it stays, as in training, where it is
one mean over all that is known of a person. Else an hour of looking away would become normal."""
AWAY_WINDOWS = 3
"""After so many windows without a face, whoever comes may be somebody else: their normal is learned anew."""


@dataclass(frozen=True)
class Prediction:
    """What is known and said after one sampled frame."""

    t_s: float
    """Time of the sampled frame, seconds."""
    state: State
    label: str
    """The class that is named; empty unless the state is `ok`."""
    names: tuple[str, ...]
    """The C class names."""
    task: str
    logits: tuple[float, ...]
    """The head's raw output for this window, C' numbers."""
    p_raw: tuple[float, ...]
    """Calibrated probabilities of this window alone, C numbers."""
    p: tuple[float, ...]
    """The same after smoothing over time."""
    coverage: float
    """Share of the window's frames that hold a face, 0..1."""
    filled: float
    """Share of the window that has been seen, 0..1."""
    box: tuple[float, float, float, float] | None
    """Face box x0, y0, x1, y1 in pixels of the frame; None without a face."""
    others: tuple[tuple[float, float, float, float], ...]
    """Boxes of the faces that are not followed."""
    latency_ms: float
    """From the frame's arrival to this prediction."""
    novelty: float = math.nan
    """How far this frame's embedding lies from the training data: mean squared standard score, 1 on average
    over the training frames; NaN without a face."""
    signals: Mapping[str, float] = field(default_factory=dict)
    """The strongest signals of the geometry in this frame, by name; empty where it was not measured."""
    normal_s: float = math.nan
    """Seconds of this person's face that their normal was learned from, up to NORMAL_S; NaN where the run
    takes no person's normal off."""

    @property
    def face(self) -> bool:
        """Whether this frame holds a face."""
        return self.box is not None


@dataclass(frozen=True)
class WindowFrame:
    """One sampled frame as the window keeps it."""

    t_s: float
    embedding: np.ndarray
    """(D,) float16, zero without a face."""
    face: bool
    geometry: np.ndarray | None
    """(G,) float32, NaN where it could not be measured."""


class Predictor:
    """Push frames in order of time; get a prediction for each sampled one."""

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
        """Faces that went through the encoder, to show that each went once."""
        self.reset()

    def reset(self, start_s: float = 0.0) -> None:
        """Forget the window and the followed face, as at the start of another video.

        start_s: where the first sample is due; 0 is the start of a file and the opening of a camera.
        """
        self._sampler = Sampler(self._pixels.fps, start_s)
        self._window.clear()
        self._cropper.reset()
        self._smoothed: np.ndarray | None = None
        self._smoothed_s = start_s
        self._since_s: float | None = None
        self._standing = DisplayState()
        self._face_s = start_s
        self._forget_normal()

    def push(self, frame: Frame) -> Prediction | None:
        """The prediction after this frame, or None for a frame between two sampled ones.

        Raises ValueError when the frame is older than the one before it.
        """
        if self._window and frame.pts_s < self._window[-1].t_s:
            raise ValueError(
                f"frames must come in order of time: {frame.pts_s} s after {self._window[-1].t_s} s"
            )
        if not self._sampler.takes(frame.pts_s):
            return None
        arrived, crop = time.perf_counter(), self._see(frame)
        return self._say(frame.pts_s, crop, self.window_logits(), arrived)

    def window_logits(self) -> np.ndarray:
        """The head's answer to the window as it stands, (C',) float32."""
        x, valid = self.window()
        if self.model.card.center != "none" and "geometry" in x:
            # Until the person's mean has grown over a whole window, the window's own mean stands for it.
            known = self.model.card.center == "subject" and self._mean_count >= self._pixels.num_frames
            rest = (self._mean_sum / self._mean_count).astype(np.float32) if known else None
            x["geometry"] = subtract_mean(x["geometry"], valid["geometry"], rest)
        return self.model.head(x, valid)

    def window(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The window as the head reads it: streams (T, D) and valid (T,) bool, padded at the end.

        Values are zero where not valid, as the store's reader gives them.
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

    def _see(self, frame: Frame) -> Crop:
        """Put one sampled frame into the window, and let go of what is older than a window."""
        rgb = frame.rgb()
        crop = self._cropper.crop(rgb)
        if crop.image is not None:
            if frame.pts_s - self._face_s > AWAY_WINDOWS * self._pixels.window_s:
                self._forget_normal()
            self._face_s = frame.pts_s
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
        if geometry is not None and not np.isnan(geometry).any() and self._normal_s() < NORMAL_S:
            self._mean_sum += geometry
            self._mean_count += 1
        self._window.append(WindowFrame(frame.pts_s, embedding, crop.image is not None, geometry))
        # After a gap, count alone would keep frames of long ago: a window is also no longer than its seconds.
        while frame.pts_s - self._window[0].t_s >= self._pixels.window_s - EARLY_S:
            self._window.popleft()
        if len(self._window) == 1:  # the first frame, or the first after a gap as long as the window
            self._since_s, self._standing = frame.pts_s, DisplayState()
        return crop

    def _forget_normal(self) -> None:
        self._mean_sum = np.zeros(self.model.card.dims.get("geometry", 0))
        self._mean_count = 0

    def _normal_s(self) -> float:
        """Seconds that the person's normal was learned from."""
        return self._mean_count / self._pixels.fps

    def _filled(self, t_s: float) -> float:
        """Share of a window that has been watched since the last gap, 0..1.

        By time, not by count: a camera slower than the sampling fills its window too. And since the gap, not
        since the oldest frame kept, whose age swings with the camera's times.
        """
        assert self._since_s is not None  # a frame has come
        return min(1.0, (t_s - self._since_s + 1 / self._pixels.fps) / self._pixels.window_s)

    def _say(self, t_s: float, crop: Crop, logits: np.ndarray, arrived: float) -> Prediction:
        card = self.model.card
        task, names = card.labelling.task, card.labelling.names
        coverage = sum(entry.face for entry in self._window) / len(self._window)
        filled = self._filled(t_s)
        smoothed = self._smooth(logits, t_s)
        raw, decision = (decide(z[None], task, self.calibration) for z in (logits, smoothed))
        self._standing = next_display_state(
            self._standing,
            # Times wander around the sampling's: half a sample short is there.
            filled=filled + 0.5 / self._pixels.num_frames,
            coverage=coverage,
            label=int(decision.label[0]),
            unsure=bool(decision.unsure[0]),
            rule=self.rule,
        )
        shown = self._standing.shown
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
            signals=self._signals(),
            normal_s=self._normal_s() if card.center == "subject" and "geometry" in card.dims else math.nan,
        )

    def _novelty(self) -> float:
        """Of the newest frame; see `Prediction.novelty`."""
        latest = self._window[-1]
        if not latest.face or not self._reads_embeddings:
            return math.nan
        mean, std = self.model.statistics["embeddings"]
        return float(np.mean(((latest.embedding - mean) / std) ** 2))

    def _signals(self) -> dict[str, float]:
        """Of the newest frame; see `Prediction.signals`."""
        geometry, identity = self._window[-1].geometry, self.model.card.recipe.geometry
        if geometry is None or identity is None or np.isnan(geometry).any():
            return {}
        found = strongest_signals(geometry[None], identity.features)
        return {name: float(values[0]) for name, values in found.items()}

    def _smooth(self, logits: np.ndarray, t_s: float) -> np.ndarray:
        """Average of the logits over time, weights falling by e every SMOOTHING_S, whatever the intervals."""
        if self._smoothed is None:
            self._smoothed = logits.astype(np.float64)
        else:
            keep = math.exp(-(t_s - self._smoothed_s) / SMOOTHING_S)
            self._smoothed = keep * self._smoothed + (1 - keep) * logits
        self._smoothed_s = t_s
        return self._smoothed


def _open_geometry(model: LiveModel) -> Any:
    """The measurer of the geometry stream, or None when the head does not read it."""
    if model.landmarker_file is None:
        return None
    from extract.face.geometry import FaceGeometry

    assert model.card.recipe.geometry is not None  # open_model found its file by it
    return FaceGeometry(model.card.recipe.geometry, model.landmarker_file, THREADS)
