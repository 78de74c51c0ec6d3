"""Stores on object storage: the same claims as on a disk, against an S3 server on loopback."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from extract.pipeline.planning import store_at
from features.__main__ import main
from features.cli import StoreNotFoundError, UserError
from features.maintenance.verify import verify_store
from features.store.location import location_of, read_bytes, root_names
from features.store.lock import RELEASED, planner_lock
from features.store.store import FeatureStore, delete, plan
from tests.support.small_store import WITH_GEOMETRY, clips_of, fill_row, row_values, write_store

pytestmark = pytest.mark.usefixtures("no_figures")

pytest.importorskip("obstore", reason="object storage needs the extra [s3]")
moto_server = pytest.importorskip("moto.server", reason="the S3 server of these tests is moto's")

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The address of a bucket on an S3 server of this process."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        request = urllib.request.Request(f"http://{host}:{port}/people", method="PUT")
        urllib.request.urlopen(request).close()
        yield "s3://people"
        server.stop()


def test_an_outage_is_not_a_missing_store(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Extract plans a new store where there is none yet, but not where the storage does not respond."""
    assert store_at(f"{bucket}/none.zarr") is None
    monkeypatch.setattr("features.store.location.OBJECT_TRIES", 0)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # nothing listens there
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(UserError, match=r"none\.zarr") as outage:
            store_at(f"{bucket}/none.zarr")
    assert not isinstance(outage.value, StoreNotFoundError)


def test_object_store_equals_a_folder(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows, table and fingerprint are equal; an address whose double slash pathlib has merged works; the
    packed copy is in the cache."""
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "cache"))
    address = f"{bucket}/한글 a.zarr"
    write_store(address, 5, crops=True)
    actual = FeatureStore.open(Path(address))
    expected = write_store(tmp_path / "s.zarr", 5, crops=True)
    assert actual.path == address
    assert actual.fingerprint() == expected.fingerprint()
    assert actual.read_crops(3) == expected.read_crops(3)
    plain, valid = actual.read_stream("embeddings")
    assert np.array_equal(plain, expected.read_stream("embeddings")[0])
    assert actual.pack()
    assert not actual.pack()
    mapped = actual.mapped_stream("embeddings")
    assert mapped is not None
    assert np.array_equal(mapped[0], plain)
    assert np.array_equal(mapped[1], valid)
    assert verify_store(actual) == []


def test_object_store_grows_fails_and_deletes(bucket: str) -> None:
    """Corrections of the manifest, failures, deletion of one subject, deletion of the store."""
    address = f"{bucket}/grown.zarr"
    write_store(address, 4)
    store = plan(address, clips_of(6)[1:], WITH_GEOMETRY, numerics={"backend": "test"})
    assert store.changes.not_in_manifest == ("영상/0.mp4#0",)
    assert store.missing("embeddings").tolist() == [4, 5]
    store.write_failure(4, "사유")
    assert store.table().failure[4] == "사유"
    fill_row(store, 4)
    assert store.table().failure[4] == ""
    assert store.missing("embeddings").tolist() == [5]
    assert delete(address, "p1") == 2
    assert verify_store(FeatureStore.open(address)) == []
    delete(address)
    with pytest.raises(ValueError, match="no store at s3://people/grown"):
        FeatureStore.open(address)


def test_row_written_after_a_deletion_on_object_storage_is_cleared(bucket: str) -> None:
    """A worker that opened the store before writes the row again; the next planner deletes it."""
    address = f"{bucket}/back.zarr"
    worker = write_store(address, 4)
    assert delete(address, "p1") == 1
    fill_row(worker, 1)
    assert [item.clip_id for item in verify_store(FeatureStore.open(address))] == ["row 1"]
    worker.finalize()
    assert verify_store(FeatureStore.open(address)) == []
    assert not FeatureStore.open(address).present("embeddings")[1]


def test_packed_copy_on_object_storage_depends_on_the_address_not_its_spelling(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "cache"))
    address = f"{bucket}/slash.zarr"
    write_store(address, 4)
    assert FeatureStore.open(address).pack()
    assert FeatureStore.open(f"{address}/").mapped_stream("embeddings") is not None
    assert delete(f"{address}/", "p1") == 1
    assert not list((tmp_path / "cache").rglob("x.npy"))


def test_object_store_has_one_planner(bucket: str) -> None:
    """The lock object is created only if it does not exist, so a second planner waits."""
    location = location_of(f"{bucket}/locked.zarr")
    with planner_lock(location), pytest.raises(ValueError, match="is locked by another process"):
        with planner_lock(location, wait_s=0.2):
            pass
    with planner_lock(location, wait_s=0.2):
        pass


def test_the_lock_on_object_storage_is_renewed(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting planner sees that the lock is renewed; it is released at the end."""
    monkeypatch.setattr("features.store.lock.RENEW_S", 0.02)
    location = location_of(f"{bucket}/renewed.zarr")
    with planner_lock(location):
        first = read_bytes(location, "planner.lock.1")
        while read_bytes(location, "planner.lock.1") == first:
            pass
    assert read_bytes(location, "planner.lock.1") == RELEASED


def test_stale_lock_on_object_storage_is_taken_with_the_next_number(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planner that finds a higher number writes nothing more."""
    monkeypatch.setattr("features.store.lock.LOCK_STALE_S", 0.0)
    location = location_of(f"{bucket}/stale.zarr")
    location.objects.put("planner.lock.7", b'{"pid": 1, "host": "elsewhere", "token": "a"}')
    with planner_lock(location) as held:
        assert root_names(location) == ["planner.lock.8"]
        held.require_lock()
        location.objects.put("planner.lock.9", b"{}")
        with pytest.raises(ValueError, match="because this one was paused"):
            held.require_lock()
    assert read_bytes(location, "planner.lock.9") == b"{}"


def test_two_shards_at_once_on_object_storage(bucket: str) -> None:
    """Two processes plan and write one store."""
    address = f"{bucket}/shards.zarr"
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.support.small_store", address, str(shard), "8"],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
        )
        for shard in (0, 1)
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    store = FeatureStore.open(address)
    x, _ = store.read_stream("embeddings")
    assert all(np.array_equal(x[row], row_values(row)["embeddings"]) for row in range(8))
    assert verify_store(store) == []


def test_extract_writes_into_object_storage(
    bucket: str, tmp_path: Path, real_clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command; a second run finds all rows extracted."""
    from extract.__main__ import main as extract

    shutil.copy(real_clips["single"], tmp_path / "얼굴.mp4")
    (tmp_path / "labels.csv").write_text("path,label,subject\n얼굴.mp4,engaged,s\n", encoding="utf-8")
    argv = ["--data", str(tmp_path / "labels.csv"), "--out", f"{bucket}/extracted.zarr", "--json"]
    argv += ["--weights", "random", "--crops", "jpeg", "--geometry", "off", "--workers", "0"]
    summaries = []
    for _ in range(2):
        capsys.readouterr()
        assert extract(argv) == 0
        summaries.append(json.loads(capsys.readouterr().out))
    assert [(summary["done"], summary["skipped"]) for summary in summaries] == [(1, 0), (0, 1)]
    store = FeatureStore.open(f"{bucket}/extracted.zarr")
    assert store.read_stream("embeddings")[1].any()
    assert verify_store(store) == []


def test_head_is_trained_and_evaluated_on_object_storage(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqmodel.__main__ import main as seqmodel

    monkeypatch.setenv("BRAINBUDDY_CACHE", str(tmp_path / "cache"))
    address, run = f"{bucket}/judged.zarr", str(tmp_path / "run")
    rng, subject = np.random.default_rng(0), np.repeat(np.arange(10), 6)
    np.savez(tmp_path / "f.npz", x=rng.normal(size=(60, 4, 3)), y=np.arange(60) % 2, subject=subject)
    assert main(["import", str(tmp_path / "f.npz"), "--out", address, "--name", "toy"]) == 0
    assert seqmodel(["train", "--store", address, "--run", run, "--epochs", "1"]) == 0
    for argv in ([], ["--store", address]):
        assert seqmodel(["evaluate", "--run", run, "--bootstrap-rounds", "20", *argv]) == 0


def test_object_storage_error_is_a_one_line_error(
    bucket: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A missing bucket, a missing server: exit code 2, no traceback."""
    assert main(["info", "s3://no-such-bucket/a.zarr"]) == 2
    assert "error: " in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"s3://no-such-bucket/a\.zarr: no such bucket"):
        plan("s3://no-such-bucket/a.zarr", clips_of(1), WITH_GEOMETRY, numerics={})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert main(["info", f"{bucket}/a.zarr"]) == 2
    assert "s3://people/a.zarr: Generic S3 error" in capsys.readouterr().err
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
