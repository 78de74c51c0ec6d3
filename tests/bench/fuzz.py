"""python -m tests.bench fuzz: odd video files, made by ffmpeg with a seed, through all that reads videos.

Each file must be read like ffmpeg's own decoding of it (same number of frames, same shape, same pictures), or
carry a doubt, or fail with a reason; and `live predict` must refuse the same files as `extract`. Prints every
file that does not, and a table by kind of damage.
FUZZ_FILES and FUZZ_SEED set the number of files and the seed. Needs ffmpeg.
"""

import io
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from extract.video.reader import read_video
from features.recipe import Pixels
from seqmodel.encoders.model_files import detector_file
from tests.support.small_run import write_run

FILES, SEED = int(os.environ.get("FUZZ_FILES", "200")), int(os.environ.get("FUZZ_SEED", "0"))
CODECS = {
    "mp4": ("libx264", "libx265", "mpeg4"),
    "mkv": ("libx264", "libx265", "libvpx-vp9", "mjpeg", "ffv1", "mpeg2video"),
    "mov": ("libx264", "prores", "mjpeg"),
    "avi": ("mpeg4", "mjpeg", "huffyuv"),
    "webm": ("libvpx", "libvpx-vp9"),
    "ts": ("libx264", "mpeg2video"),
    "flv": ("flv", "libx264"),
    "wmv": ("wmv2",),
    "h264": ("libx264",),
}
RATES = ("3", "7.5", "15", "24000/1001", "30", "60")
ASPECTS = ("1", "1", "4/3", "1/2", "2", "16/11")
DAMAGES = ("none", "none", "none", "flipped bytes", "truncated", "joined by cat", "zeros", "garbage in front")
OPTIONS = ("--weights", "random", "--window", "2", "--fps", "3")
SIZES = ("64x48", "66x50", "128x96", "90x160", "320x180")
MAX_DIFFERENCE = 6.0
"""Mean absolute difference of 16 × 16 thumbnails (0 to 255): colour conversions differ by less."""


def make(rng: random.Random, folder: Path, number: int) -> tuple[Path, str, str]:
    """Write one file; returns (path, how it was made, its damage)."""
    suffix = rng.choice(sorted(CODECS))
    codec, rate, aspect = rng.choice(CODECS[suffix]), rng.choice(RATES), rng.choice(ASPECTS)
    size, damage = rng.choice(SIZES), rng.choice(DAMAGES)
    filters = [f"setsar={aspect}"]
    extra = ["-bf", "2"] if codec == "libx264" and rng.random() < 0.5 else []
    if rng.random() < 0.2:
        filters.append("select='not(eq(mod(n\\,5)\\,2))'")  # uneven times
        extra += ["-vsync", "vfr"]
    if codec in ("libx264", "ffv1") and rng.random() < 0.2:
        extra += ["-pix_fmt", rng.choice(("yuv444p", "yuv420p10le", "gray"))]
    if rng.random() < 0.2 and suffix in ("mp4", "mov", "mkv", "ts"):
        extra += ["-output_ts_offset", "3.2"]
    audio = (
        ["-f", "lavfi", "-i", "sine=duration=3"] if suffix in ("mkv", "mov") and rng.random() < 0.3 else []
    )
    path = folder / f"{number:03d}.{suffix}"
    source = f"testsrc2=size={size}:rate={rate}:duration=3"
    argv = ["ffmpeg", "-loglevel", "error", "-y", "-f", "lavfi", "-i", source, *audio]
    argv += ["-vf", ",".join(filters), "-c:v", codec, "-g", "12", *extra, str(path)]
    subprocess.run(argv, check=True, capture_output=True)
    spoil(path, damage, rng)
    if suffix in ("mp4", "mov") and damage == "none" and rng.random() < 0.4:
        turned = path.with_name(f"{number:03d}t.{suffix}")
        degrees = rng.choice(("90", "180", "270"))
        argv = ["ffmpeg", "-loglevel", "error", "-y", "-i", str(path), "-c", "copy"]
        subprocess.run([*argv, "-metadata:s:v:0", f"rotate={degrees}", str(turned)], check=True)
        turned.replace(path)
        extra.append(f"turned {degrees}")
    return path, " ".join([suffix, codec, rate, size, f"sar {aspect}", *filters[1:], *extra]), damage


def spoil(path: Path, damage: str, rng: random.Random) -> None:
    """Damage a file in place."""
    content = bytearray(path.read_bytes())
    if damage == "flipped bytes":
        for _ in range(20):
            content[rng.randrange(len(content) // 8, len(content))] ^= 0xFF
    elif damage == "truncated":
        del content[int(len(content) * rng.uniform(0.2, 0.95)) :]
    elif damage == "joined by cat":
        content *= 2
    elif damage == "zeros":
        first = rng.randrange(len(content) // 4, len(content) - 200)
        content[first : first + 200] = bytes(200)
    elif damage == "garbage in front":
        content[:0] = rng.randbytes(300)
    path.write_bytes(content)


def by_ffmpeg(path: Path) -> list[np.ndarray]:
    """ffmpeg's own frames: upright, with square pixels."""
    argv = [
        "ffmpeg",
        "-loglevel",
        "quiet",
        "-i",
        str(path),
        "-map",
        "0:v:0",
        "-vf",
        "scale=iw*sar:ih,setsar=1",
    ]
    argv += ["-vsync", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    pipe = io.BytesIO(subprocess.run(argv, capture_output=True, stdin=subprocess.DEVNULL).stdout)
    frames = []
    while pipe.readline():  # P6
        width, height = (int(number) for number in pipe.readline().split())
        pipe.readline()
        frames.append(np.frombuffer(pipe.read(3 * width * height), np.uint8).reshape(height, width, 3))
    return frames


def compare(path: Path, damage: str) -> tuple[str, str]:
    """(right, doubt, failure, unnoticed damage or wrong; what is wrong or why it failed)."""
    try:
        frames = list(read_video(path))
    except ValueError as error:
        return "failure", str(error).removeprefix(f"{path}: ")
    if doubts := sorted({doubt for frame in frames for doubt in frame.doubts}):
        return "doubt", "; ".join(doubts)
    expected = by_ffmpeg(path)
    if damage == "joined by cat" and 0 < len(expected) - len(frames) <= 2:
        return "right", "at a join, frames whose times repeat are left out"
    if len(frames) != len(expected):
        return "wrong", f"{len(frames)} frames, ffmpeg has {len(expected)}"
    for frame, other in zip(frames, expected, strict=True):
        rgb = frame.rgb()
        # Before or after a turn, pixels become square by another edge: the same shape in another size.
        ratios = [picture.shape[1] / picture.shape[0] for picture in (rgb, other)]
        if abs(ratios[0] / ratios[1] - 1) > 0.05:
            return "wrong", f"shape {rgb.shape}, ffmpeg has {other.shape}"
        thumbnails = [cv2.resize(picture, (16, 16), interpolation=cv2.INTER_AREA) for picture in (rgb, other)]
        difference = np.abs(thumbnails[0].astype(float) - thumbnails[1]).mean()
        if difference > MAX_DIFFERENCE:
            # Some decoders (MJPEG) return a broken picture without saying so, each time another one.
            kind = "wrong" if damage == "none" else "unnoticed damage"
            return kind, f"at {frame.pts_s:.2f} s a difference of {difference:.1f}"
    return "right", ""


def main() -> int:
    """Make, compare, extract and predict the files; returns 1 if one is wrong.

    Raises RuntimeError if a command does not end well.
    """
    rng, counts, is_wrong = random.Random(SEED), Counter[tuple[str, str]](), False
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "videos" / "x"
        folder.mkdir(parents=True)
        for number in range(FILES):
            path, description, damage = make(rng, folder, number)
            result, text = compare(path, damage)
            counts[damage, result] += 1
            if result == "wrong":
                is_wrong = True
                print(f"WRONG {path.name} ({description}; {damage}): {text}", flush=True)
        for damage in dict.fromkeys(DAMAGES):
            row = ", ".join(
                f"{count} {result}" for (of, result), count in sorted(counts.items()) if of == damage
            )
            print(f"{damage:20} {row}")
        extracted = run("extract", "--data", folder.parent, "--out", f"{temporary}/s.zarr", *OPTIONS)
        model = write_run(
            Path(temporary) / "run", detector_file("short"), pixels=Pixels((), fps=3, window_s=2)
        )
        predicted = run("live", "predict", folder, "--run", model, "--out", f"{temporary}/predictions")
        # A later window may fail alone, for example if it holds one frame.
        refused = {
            Path(row["clip_id"].removesuffix("#0")).name: row["reason"]
            for row in extracted["failures"]
            if row["clip_id"].endswith("#0")
        }
        others = {Path(row["video"]).name: row["reason"] for row in predicted["failed"]}
        for name in sorted(refused.keys() ^ others.keys()):
            is_wrong = True
            print(f"WRONG {name}: extract {refused.get(name, 'ok')}; predict {others.get(name, 'ok')}")
        print(f"extract and predict: {len(refused)} and {len(others)} of {FILES} files failed")
    return int(is_wrong)


def run(package: str, *argv: object) -> dict[str, Any]:
    """The JSON summary of a command. Raises RuntimeError with its output if it did not end well."""
    words = [sys.executable, "-m", package, *map(str, argv), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, encoding="utf-8")
    if done.returncode not in (0, 1) or "Traceback" in done.stderr:
        raise RuntimeError(done.stderr)
    return dict(json.loads(done.stdout))


if __name__ == "__main__":
    sys.exit(main())
