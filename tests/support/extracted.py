"""Extracts one window of a video."""

from functools import cache
from pathlib import Path

from extract.face.geometry import FEATURES
from extract.pipeline.extractor import FeatureExtractor, extract_video, open_extractor
from extract.pipeline.types import ExtractorConfig, FailedWindow, Job, Window, WindowFeatures
from features.recipe import GeometryId, Pixels, Recipe
from live.inference.model import open_model
from seqmodel.encoders.engine import Backend, open_engine
from seqmodel.encoders.model_files import sha256_of

ALL_PARTS = frozenset({"embeddings", "geometry", "crops"})


def random_extractor_config(detector: Path, landmarker: Path, window_s: float) -> ExtractorConfig:
    """A configuration with random encoder weights and the geometry."""
    encoder = open_engine("mobilenet_v3_large", "random").encoder_id
    pixels = Pixels((sha256_of(detector),), window_s=window_s)
    recipe = Recipe(pixels, encoder, GeometryId(sha256_of(landmarker), FEATURES))
    return ExtractorConfig(recipe, (detector,), landmarker, "random")


@cache
def extracted(run: Path, video: Path, backend: Backend) -> WindowFeatures:
    """The features of a video's first window, extracted with the run's recipe, once per process. Tests do not
    change them."""
    model = open_model(run, backend=backend)
    extractor_config = ExtractorConfig(
        model.card.recipe, model.detector_files, model.landmarker_file, weights="random", backend=backend
    )
    extractor: FeatureExtractor = open_extractor(extractor_config)
    row = next(extract_video(Job(video, (Window(0, 0.0, None, ALL_PARTS),)), extractor))
    extractor.close()
    assert not isinstance(row, FailedWindow), row
    return row
