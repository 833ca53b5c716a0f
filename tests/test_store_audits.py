"""Audits of a repository in an object store: restic's own S3 backend, and a network that breaks."""

import hashlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from recovery_pipelines.drills.record import DrillRecord
from recovery_pipelines.verdict import Verdict
from tests.test_audits import SECRET, Team

KEYS = {"AWS_ACCESS_KEY_ID": "the-key", "AWS_SECRET_ACCESS_KEY": "the-secret-of-the-store"}
CHUNK_BYTES = 4096


class Store(Team):
    """A team whose repository is in a bucket."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder, "directory")
        self.tool, self.address = "restic", address
        self.bucket: Any = boto3.resource("s3", endpoint_url=f"http://{address}").Bucket(
            folder.name.replace("_", "-")
        )
        self.bucket.create()
        (self.data / "large").write_bytes(hashlib.shake_256(b"large").digest(2_000_000))
        self.repository = self.place(address)  # type: ignore[assignment]
        self.run("restic", "init", "-r", self.repository)
        self.back_up("first")

    def place(self, address: str, folder: str = "backups") -> str:
        return f"s3:http://{address}/{self.bucket.name}/{folder}"

    def audit_at(self, address: str, folder: str = "backups") -> DrillRecord:
        environment = f", environment: [{', '.join(KEYS)}]"
        return self.audit(place=self.place(address, folder) + environment)

    def digest(self) -> str:
        found = hashlib.sha256()
        for each in self.bucket.objects.all():
            found.update(f"{each.key} {each.last_modified}".encode())
            found.update(each.get()["Body"].read())
        return found.hexdigest()


class CutLine:
    """A way to the store that is cut, for good, after so many bytes have come back."""

    def __init__(self, address: str, after_bytes: int) -> None:
        self._store = tuple(address.split(":"))
        self._left = after_bytes
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                store = socket.create_connection(self._store)
                self._open += [client, store]
                for ends in ((client, store, False), (store, client, True)):
                    threading.Thread(target=self._pump, args=ends, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(CHUNK_BYTES):
                if counted:
                    self._left -= len(data)
                    if self._left < 0:
                        self.cut()
                sink.sendall(data)

    @property
    def is_cut(self) -> bool:
        return self._left < 0

    def cut(self) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("TEAM_PASSWORD", SECRET)
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        yield "{}:{}".format(*server.get_host_and_port())
        server.stop()


@pytest.fixture
def store(address: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("team"), address)


def test_a_repository_in_a_bucket_passes_untouched(store: Store) -> None:
    before = store.digest()
    record = store.audit_at(store.address)
    assert record.verdict is Verdict.PASS, record.reason
    assert record.metrics["verified_against"] == "manifest"
    assert store.digest() == before


def wrong_password(store: Store, patch: pytest.MonkeyPatch) -> DrillRecord:
    patch.setenv("TEAM_PASSWORD", "wrong")
    return store.audit_at(store.address)


def missing(store: Store, _: pytest.MonkeyPatch) -> DrillRecord:
    return store.audit_at(store.address, "nowhere")


def half_deleted(store: Store, _: pytest.MonkeyPatch) -> DrillRecord:
    store.bucket.objects.filter(Prefix="backups/data/").delete()
    return store.audit_at(store.address)


def unreachable(store: Store, _: pytest.MonkeyPatch) -> DrillRecord:
    line = CutLine(store.address, 0)
    line.cut()
    return store.audit_at(line.address)


def drops_in_the_middle(store: Store, _: pytest.MonkeyPatch) -> DrillRecord:
    line = CutLine(store.address, 500_000)
    record = store.audit_at(line.address)
    assert line.is_cut
    return record


@pytest.mark.parametrize(
    "bad", [wrong_password, missing, half_deleted, unreachable, drops_in_the_middle]
)
def test_a_store_that_fails_is_an_error_in_one_line(
    bad: Callable[[Store, pytest.MonkeyPatch], DrillRecord],
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = store.digest()
    record = bad(store, monkeypatch)
    assert record.verdict is Verdict.ERROR, record.reason
    (message,) = record.messages
    assert "\n" not in message
    assert not [word for word in (SECRET, *KEYS.values()) if word in message]
    if bad is not half_deleted:
        assert store.digest() == before
