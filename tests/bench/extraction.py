"""Speed of extraction against a reference and against decoding alone; growth with data; memory.

The reference is the usual pipeline: read() every frame, detect, crop, PIL and torchvision transforms, eager
float32 MobileNetV3, one clip after another. Both run without geometry, on the same files, with seeded random
weights (speed does not depend on them). Wall-clock times do not include loading the models. On a shared
machine, compare the processor seconds per clip.

BENCH_PARTS=processor,reference,decode,precision,workers,growth,memory selects parts.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from extract.pipeline.extractor import extract_video, open_extractor
from extract.pipeline.types import ExtractorConfig, Job, Window
from extract.video.reader import Targets, read_video
from features.recipe import Pixels, Recipe
from seqmodel.encoders.engine import open_engine
from seqmodel.encoders.model_files import detector_file, sha256_of
from tests.support.clips import face_frames, looped, write_video
from tests.support.media import fetch_real_clips

CORES = 2
NUM_REFERENCE_CLIPS, NUM_CLIPS = 16, 48
MEMORY_MINUTES = float(os.environ.get("BENCH_MINUTES", "6"))
PARTS = ("processor", "reference", "decode", "precision", "workers", "growth", "memory")


def main() -> None:
    """Measure the requested parts and print a table of each."""
    parts = os.environ.get("BENCH_PARTS", ",".join(PARTS)).split(",")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        many = make_clips(root / "many", NUM_CLIPS)
        few = link_clips(root / "few", many[:NUM_REFERENCE_CLIPS])
        if "processor" in parts:
            processor(few)
        if set(parts) == {"processor"}:
            return
        default_rate = extract(few)
        if "reference" in parts:
            reference_rate = reference_clips_per_s(sorted(few.rglob("*.mp4")))
            sampled_rate = reference_clips_per_s(sorted(few.rglob("*.mp4")), only_sampled=True)
            speeds = {"reference": reference_rate, "reference, only sampled frames": sampled_rate}
            speeds["extract"] = default_rate
            speeds["extract in float32"] = extract(few, "--precision", "f32")
            speeds["extract with geometry"] = extract(few, "--geometry", "on")
            show("16 clips, clips per second", speeds, "reference")
        all_clips_rate = extract(many[0].parent.parent)
        if "decode" in parts:
            decoding = decode_clips_per_s(many)
            show(
                "48 clips, clips per second",
                {"decode only": decoding, "extract": all_clips_rate},
                "decode only",
            )
        if "precision" in parts:
            show(
                "16 clips by backend and precision, clips per second",
                {
                    f"{backend} {precision}": extract(few, "--backend", backend, "--precision", precision)
                    for backend, precision in (("openvino", "f32"), ("openvino", "bf16"), ("torch", "f32"))
                },
                "openvino f32",
            )
        if "workers" in parts:
            by_workers = {str(n): extract(few, "--workers", str(n)) for n in (1, 2, 3, 4)}
            show("16 clips by number of workers, clips per second", by_workers, "1")
        if "growth" in parts:
            seconds = {"12 clips": 12 / extract(link_clips(root / "twelve", many[:12]))}
            seconds["48 clips"] = NUM_CLIPS / all_clips_rate
            show("seconds by number of clips", seconds, "12 clips")
            long = {f"{m} min": seconds_of_long(root, many[0], m) for m in (1, 4)}
            show("seconds by length of one video", long, "1 min")
        if "memory" in parts:
            memory(root)


def show(title: str, values: dict[str, float], base: str) -> None:
    """Print one row per value, with its ratio to the value named `base`."""
    print(f"\n{title}")
    for name, value in values.items():
        print(f"  {name:33} {value:8.2f}   {value / values[base]:6.2f}×", flush=True)


def make_clips(folder: Path, count: int, width: int = 640, height: int = 480) -> list[Path]:
    """Write ten-second H.264 clips of real faces at 30 fps, encoded with the defaults of x264."""
    (folder / "engaged").mkdir(parents=True)
    real = fetch_real_clips()
    sources = [
        face_frames(real[name], frames, width, height) for name, frames in (("pexels", 300), ("single", 72))
    ]
    paths = []
    for index in range(count):
        path = folder / "engaged" / f"{index:03}.mp4"
        if index < len(sources):
            write_video(path, looped(sources[index], 300), 30)
        else:
            path.write_bytes(paths[index % len(sources)].read_bytes())
        paths.append(path)
    return paths


def link_clips(folder: Path, paths: list[Path]) -> Path:
    """A folder of classes with hard links to the clips."""
    (folder / "engaged").mkdir(parents=True)
    for path in paths:
        os.link(path, folder / "engaged" / path.name)
    return folder


def extract(data: Path, *options: str) -> float:
    """Clips per second of the `extract` command, from the first decode to the last write."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "extract", "--data", str(data), "--out", f"{out}/s.zarr"]
        command += ["--weights", "random", "--json", *options]
        command += [] if "--geometry" in options else ["--geometry", "off"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise RuntimeError(done.stderr)
        summary = json.loads(done.stdout)
        assert not summary["failed"]
        total = sum(summary["stage_s"].values())
        stages = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in summary["stage_s"].items())
        print(f"  extract {' '.join(options) or '(defaults)'}: {stages}", flush=True)
        return summary["clips_per_s"]


def open_reference(threads: int, only_sampled: bool = False) -> Callable[[list[Path]], None]:
    """The reference with its models loaded; with `only_sampled`, it detects faces in sampled frames only."""
    import mediapipe as mp
    import torch
    from mediapipe.tasks.python import BaseOptions, vision
    from PIL import Image
    from torchvision import models, transforms

    torch.set_num_threads(threads)
    network = models.mobilenet_v3_large(weights=None).eval()
    network.classifier = torch.nn.Identity()
    transform = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    options = BaseOptions(model_asset_path=str(detector_file("short")))
    detector = vision.FaceDetector.create_from_options(vision.FaceDetectorOptions(base_options=options))

    def run(paths: list[Path]) -> None:
        for path in paths:
            video = cv2.VideoCapture(str(path))
            faces, index = [], 0
            while True:
                is_read, frame = video.read()
                if not is_read:
                    break
                is_sampled = index % 10 == 0
                index += 1
                if not is_sampled and only_sampled:
                    continue
                rgb = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                found = detector.detect(mp.Image(image_format=mp.ImageFormat.SRGB, data=rgb)).detections
                if found and is_sampled:
                    box = found[0].bounding_box
                    corners = (
                        box.origin_x,
                        box.origin_y,
                        box.origin_x + box.width,
                        box.origin_y + box.height,
                    )
                    faces.append(transform(Image.fromarray(rgb).crop(corners)))
            with torch.no_grad():
                np.asarray(network(torch.stack(faces)))

    return run


def reference_clips_per_s(paths: list[Path], only_sampled: bool = False) -> float:
    """Clips per second of the reference in this process, without loading the models."""
    run = open_reference(CORES, only_sampled)
    started = time.perf_counter()
    run(paths)
    return len(paths) / (time.perf_counter() - started)


def processor(data: Path) -> None:
    """Print processor seconds per clip in this process with one thread: the least of three rounds."""
    paths = sorted(data.rglob("*.mp4"))[:2]
    rounds: dict[str, list[float]] = {}

    def measure(name: str, work: Callable[[], object]) -> None:
        before = time.process_time()
        work()
        rounds.setdefault(name, []).append((time.process_time() - before) / len(paths))

    extractor = open_extractor(extractor_config())
    windows = (Window(0, 0.0, 10.0),)

    def extract_all() -> None:
        for path in paths:
            list(extract_video(Job(path, windows), extractor))

    reference = open_reference(1)
    for _ in range(3):
        measure("reference", lambda: reference(paths))
        measure("extract", extract_all)
        with unittest.mock.patch.object(Targets, "between", return_value=True):  # as the reference does
            measure("extract, every frame decoded", extract_all)
        measure("decode every frame", lambda: [list(read_video(path)) for path in paths])
        before = os.times()
        for path in paths:
            ffmpeg = ["ffmpeg", "-v", "error", "-nostdin", "-threads", "1", "-i", str(path)]
            subprocess.run([*ffmpeg, "-f", "null", "-"], check=True)
        after = os.times()
        spent = after.children_user + after.children_system - before.children_user - before.children_system
        rounds.setdefault("ffmpeg -f null", []).append(spent / len(paths))
    extractor.close()
    best = {name: min(seconds) for name, seconds in rounds.items()}
    show("processor seconds per clip, one thread", best, "extract")


def extractor_config() -> ExtractorConfig:
    """MobileNetV3-Large with random weights, the short-range detector, no geometry."""
    detector = detector_file("short")
    encoder = open_engine("mobilenet_v3_large", "random", threads=1).encoder_id
    return ExtractorConfig(Recipe(Pixels((sha256_of(detector),)), encoder), (detector,), weights="random")


def decode_clips_per_s(paths: list[Path]) -> float:
    """Clips per second of `ffmpeg -threads 1 -f null`, with CORES processes."""
    command = ["xargs", "-P", str(CORES), "-I", "{}", "ffmpeg", "-v", "error", "-nostdin", "-threads", "1"]
    command += ["-i", "{}", "-f", "null", "-"]
    started = time.perf_counter()
    subprocess.run(command, input="\n".join(map(str, paths)), text=True, encoding="utf-8", check=True)
    return len(paths) / (time.perf_counter() - started)


def repeated(source: Path, target: Path, times: int) -> Path:
    """Write the packets of a video `times` times with shifted time stamps: a long file without encoding."""
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        length = stream.duration
        for index in range(times):
            reading.seek(0)
            for packet in reading.demux(stream):
                if packet.dts is None:
                    continue
                packet.pts += index * length
                packet.dts += index * length
                packet.stream = copy
                writing.mux(packet)
    return target


def seconds_of_long(root: Path, clip: Path, minutes: int) -> float:
    """Seconds to extract one video of `minutes` minutes."""
    folder = root / f"long{minutes}"
    (folder / "engaged").mkdir(parents=True)
    repeated(clip, folder / "engaged" / "long.mp4", minutes * 6)
    return minutes * 6 / extract(folder)


def memory(root: Path) -> None:
    """Print the resident memory of a worker early and late in a long 1080p video."""
    (clip,) = make_clips(root / "hd", 1, 1920, 1080)
    folder = root / "hour"
    (folder / "engaged").mkdir(parents=True)
    repeated(clip, folder / "engaged" / "long.mp4", round(MEMORY_MINUTES * 6))
    command = [sys.executable, "-m", "extract", "--data", str(folder), "--out", f"{root}/m.zarr"]
    command += ["--weights", "random", "--workers", "1"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    sizes: list[float] = []
    while process.poll() is None:
        done = len(list((root / "m.zarr" / "frames").glob("c.*.0.0")))
        if done > 1 and (size := largest_child_mb(process.pid)):
            sizes.append(size)
        time.sleep(0.5)
    third = len(sizes) // 3
    print(f"\nresident memory of a worker on {MEMORY_MINUTES:g} min of 1080p, MB")
    print(
        f"  first third {max(sizes[:third]):.0f}, last third {max(sizes[-third:]):.0f}, max {max(sizes):.0f}"
    )


def largest_child_mb(parent: int) -> float:
    """Resident megabytes of the largest child process of `parent`."""
    sizes = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text(encoding="utf-8")
        except OSError:
            continue
        fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        if fields.get("PPid", "").strip() == str(parent) and "VmRSS" in fields:
            sizes.append(int(fields["VmRSS"].split()[0]) / 1024)
    return max(sizes)


if __name__ == "__main__":
    main()
