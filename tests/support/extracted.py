"""One window of a video as extraction makes it."""

from pathlib import Path

from extract.pipeline.extractor import Job, Kernels, Lost, Row, Setup, Window, extract_video, open_kernels
from live.inference.model import open_model
from seqmodel.encoders.engine import Backend

ALL_PARTS = frozenset({"embeddings", "geometry", "crops"})


def extracted(run: Path, video: Path, backend: Backend) -> Row:
    """The first window of a video, as extraction makes it under the run's recipe."""
    model = open_model(run, backend=backend)
    setup = Setup(
        model.card.recipe, model.detector_files, model.landmarker_file, weights="random", backend=backend
    )
    kernels: Kernels = open_kernels(setup)
    row = next(extract_video(Job(video, (Window(0, 0.0, None, ALL_PARTS),)), kernels))
    kernels.close()
    assert not isinstance(row, Lost), row
    return row
