"""Speed of live, side by side: one pass a sampled frame against re-encoding the window; latency; start.

python -m tests.bench live. Ratios are of things measured in this run; the machine's load shows in them all.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def main() -> int:
    """Print the tables."""
    import cv2

    from live.model import open_model
    from live.predictor import Predictor
    from seqmodel.assets import detector_file, landmarker_file
    from seqmodel.config import ExportArgs
    from seqmodel.export import export
    from tests.media import fetch_real_clips
    from tests.small_run import write_run

    cv2.setNumThreads(1)
    video = fetch_real_clips()["pexels"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = {
            "embeddings": write_run(folder / "one", detector_file("short")),
            "both streams": write_run(
                folder / "two",
                detector_file("short"),
                landmarker=landmarker_file(),
                inputs=("embeddings", "geometry"),
            ),
        }
        table = [(name, *latency(Predictor(open_model(run)), video)) for name, run in runs.items()]
        export(ExportArgs(runs["embeddings"], out=folder / "bundle"))
        table.append(("exported, embeddings", *latency(Predictor(open_model(folder / "bundle")), video)))
        seed_ms, seed_cpu_ms = window_again(runs["embeddings"], video)
        print(f"{'way':34}{'median ms':>11}{'p99 ms':>9}{'ratio':>8}{'processor ms':>14}{'ratio':>8}")
        print(
            f"{'window re-encoded, eager float32':34}{seed_ms:11.1f}{'':9}{1:8.1f}{seed_cpu_ms:14.1f}{1:8.1f}"
        )
        for name, median_ms, p99_ms, cpu_ms in table:
            ratios = f"{seed_ms / median_ms:8.1f}{cpu_ms:14.2f}{seed_cpu_ms / cpu_ms:8.1f}"
            print(f"{name:34}{median_ms:11.2f}{p99_ms:9.2f}{ratios}", flush=True)
        print()
        print(f"{'start':34}{'seconds':>14}")
        for name, run in (("run, torch head", runs["embeddings"]), ("exported, no torch", folder / "bundle")):
            print(f"{name:34}{seconds_to_ready(run):14.2f}")
        print()
        for name, run in (("run", runs["both streams"]), ("exported", folder / "bundle")):
            print_while_live(name, run, video)
    return 0


def latency(predictor: "Predictor", video: Path) -> tuple[float, float, float]:  # type: ignore[name-defined]  # noqa: F821
    """Milliseconds from sampled frame in to decision out over three passes: median, 99th percentile, and mean
    processor time of all threads, which a busy machine changes less."""
    from extract.video import Frame, read_video, sample_at

    # Decoding is the camera's work: frames come ready.
    frames = [Frame(f.pts_s, f.rgb()) for f in sample_at(read_video(video), 3)]
    found: list[float] = []
    for turn in range(4):
        predictor.reset()
        before = predictor.num_encoded
        if turn == 1:
            start = time.process_time()
        predictions = [predictor.push(frame) for frame in frames]
        assert predictor.num_encoded - before == len(frames), "a face in every frame, one pass each"
        if turn:  # the first pass warms up
            found += [p.latency_ms for p in predictions if p is not None]
    cpu_ms = (time.process_time() - start) * 1e3 / len(found)
    predictor.close()
    return float(np.median(found)), float(np.percentile(found, 99)), cpu_ms


def window_again(run: Path, video: Path) -> tuple[float, float]:
    """The seed's way: detect in the new frame, all 30 crops through the CNN in eager float32, the head.

    Milliseconds: median, and mean processor time of all threads.
    """
    import torch

    from extract.face import FaceCropper
    from extract.video import read_video, sample_at
    from live.model import open_model, torch_head
    from seqmodel.encoder import encoder_of

    model = open_model(run, backend="torch")
    assert model.card.recipe.pixels is not None
    encoder, head = encoder_of(model.card.recipe.encoder), torch_head(run, model.card)
    cropper = FaceCropper(model.card.recipe.pixels, model.detector_files)
    torch.set_num_threads(os.cpu_count() or 1)  # live gives its head one; the seed's way gets all
    frames = [f.rgb() for f in sample_at(read_video(video), 3)][:30]
    crops = [cropper.crop(rgb).image for rgb in frames]
    window = torch.from_numpy(np.stack([crop for crop in crops if crop is not None]))
    found, cpu_start = [], 0.0
    for turn in range(6):
        if turn == 1:
            cpu_start = time.process_time()
        start = time.perf_counter()
        cropper.crop(frames[turn])
        with torch.inference_mode():
            embeddings = encoder(window).numpy()
        head({"embeddings": embeddings}, {"embeddings": np.ones(len(embeddings), bool)})
        found.append(time.perf_counter() - start)
    cpu_ms = (time.process_time() - cpu_start) * 1e3 / 5
    cropper.close()
    return float(np.median(found[1:])) * 1e3, cpu_ms


def seconds_to_ready(run: Path) -> float:
    """A fresh process until its predictor has answered one frame; the best of three."""
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from live.model import open_model\nfrom live.predictor import Predictor\n"
        "from extract.video import Frame\n"
        "p = Predictor(open_model(Path(sys.argv[1])))\n"
        "p.push(Frame(0.0, np.zeros((480, 640, 3), np.uint8)))\np.close()\n"
    )
    found = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, run], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        found.append(time.perf_counter() - start)
    return min(found)


def print_while_live(name: str, run: Path, video: Path) -> None:
    """Processor share and memory of a headless session on a file played at its own speed."""
    before, start = os.times(), time.perf_counter()
    words = ["--run", str(run), "--video", str(video), "--realtime", "--headless"]
    # Not getrusage: its peak holds what this process was when it started the other.
    code = (
        "import re, sys\nfrom pathlib import Path\nfrom live.__main__ import main\nmain(sys.argv[1:])\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()).group(1)) // 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    after, seconds = os.times(), time.perf_counter() - start
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    share = f"{spent / seconds:.0%} of one core over {seconds:.0f} s, start included"
    print(f"{name + ', 24 fps in real time':34}{share}; at most {done.stdout.strip()} MB")


if __name__ == "__main__":
    sys.exit(main())
