"""Extracts one window of a video."""

from pathlib import Path

from extract.pipeline.extractor import FeatureExtractor, extract_video, open_extractor
from extract.pipeline.types import ExtractorConfig, FailedWindow, Job, Window, WindowFeatures
from live.inference.model import open_model
from seqmodel.encoders.engine import Backend

ALL_PARTS = frozenset({"embeddings", "geometry", "crops"})


def extracted(run: Path, video: Path, backend: Backend) -> WindowFeatures:
    """The features of a video's first window, extracted with the run's recipe."""
    model = open_model(run, backend=backend)
    extractor_config = ExtractorConfig(
        model.card.recipe, model.detector_files, model.landmarker_file, weights="random", backend=backend
    )
    extractor: FeatureExtractor = open_extractor(extractor_config)
    row = next(extract_video(Job(video, (Window(0, 0.0, None, ALL_PARTS),)), extractor))
    extractor.close()
    assert not isinstance(row, FailedWindow), row
    return row
