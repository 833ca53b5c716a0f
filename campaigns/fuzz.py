"""Damaged input for every parser of ours: only our own errors, no hang, no descriptor lost.

Samples are what real writers wrote. A mutation flips, cuts, doubles or splices bytes, or, where the
input is JSON or YAML, puts a strange value in the place of another.
"""

import copy
import functools
import json
import os
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import yaml

from recovery_pipelines import manifest
from recovery_pipelines.audits.coverage import CoverageLedger
from recovery_pipelines.audits.reader import Backup
from recovery_pipelines.audits.repositories import open_repository
from recovery_pipelines.audits.verification import newest_mark
from recovery_pipelines.drills.record import FILE_NAME as RECORD
from recovery_pipelines.drills.record import read_record
from recovery_pipelines.engines import snar
from recovery_pipelines.engines.borg import names_of_archives
from recovery_pipelines.engines.pgbackrest import read_info
from recovery_pipelines.engines.restic import read_snapshots
from recovery_pipelines.engines.tar import read_listing
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.evidence import clock, envelope, statement
from recovery_pipelines.evidence.chain import check_chain, seal
from recovery_pipelines.monitoring.application import AccessLogSource, PrometheusSource
from recovery_pipelines.monitoring.exposition import read_exposition
from recovery_pipelines.monitoring.history import sketch_from
from recovery_pipelines.notifications.outbox import forget, receipts, send_pending
from recovery_pipelines.plan import parse_plan
from recovery_pipelines.plan.monitoring import Prometheus
from recovery_pipelines.plan.repositories import Repository
from recovery_pipelines.sandbox.lease import read_lease
from recovery_pipelines.tools import Finished

Row = dict[str, Any]
LIMIT_SECONDS = 5.0
"""Of processor time, for one input."""
_CLOCK = "clock.json"
_STRANGE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, -(2**200), 1e308, float("nan"), float("inf")),
    *(
        "",
        "x",
        "\0",
        "\ud800",
        "../../x",
        "/",
        "a" * 5000,
        "1" * 5000,
        "-0",
        "9999-99-99T99:99:99Z",
    ),
    *([], {}, [[]], [None], {"": None}, [[[[[[]]]]]]),
)
_TOKENS = (
    b"\0",
    b"\n",
    b"\xff\xfe",
    b'"',
    b"\\",
    b"{",
    b"[" * 3000,
    b"&a [*a]",
    b"1e999",
    b"-",
    b"9" * 400,
)


@dataclass(frozen=True)
class Parser:
    """Something that reads what others may have written."""

    samples: tuple[bytes, ...]
    read: Callable[[bytes, Path], object]
    """With a folder that it may use."""


def fuzz(folder: Path, seed: int, rounds: int) -> Iterator[Row]:
    """Each parser `rounds` times; one row each: `wrong` says what it did first that it must not."""
    for name, parser in parsers(folder).items():
        rng = Random(f"{seed} {name}")
        began, wrong, refused = time.monotonic(), "", 0
        for sample in parser.samples:  # what is not damaged is read
            parser.read(sample, folder)
        descriptors = _descriptors()
        for number in range(rounds):
            data = mutated(rng.choice(parser.samples), rng)
            said, seconds = _tried(parser, data, folder)
            refused += said == "refused"
            if said not in ("", "refused") or seconds > LIMIT_SECONDS:
                (folder / f"{name}-{seed}-{number}".replace(" ", "_")).write_bytes(data)
                wrong = wrong or f"round {number}: {said or 'hung'} ({seconds:.1f} s)"
        if _descriptors() > descriptors:
            wrong = wrong or f"{_descriptors() - descriptors} descriptors lost"
        seconds = time.monotonic() - began
        yield {
            "parser": name,
            "rounds": rounds,
            "refused": refused,
            "wrong": wrong,
            "seconds": seconds,
        }


def _tried(parser: Parser, data: bytes, folder: Path) -> tuple[str, float]:
    began = time.process_time()
    try:
        parser.read(data, folder)
        said = ""
    except RecoveryError:
        said = "refused"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}:{place.lineno}"
        said = f"{type(error).__name__}: {str(error)[:100]!a} at {where}"
    return said, time.process_time() - began


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def mutated(sample: bytes, rng: Random) -> bytes:
    """The sample, damaged."""
    if rng.random() < 0.5 and (other := _with_a_strange_value(sample, rng)) is not None:
        return other
    data = bytearray(sample)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, length = rng.randrange(len(data) + 1), rng.choice((1, 2, 16, 200))
        match rng.randrange(5):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + length]
            case 2:
                data[at:at] = data[at : at + length]
            case 3:
                data[at:at] = rng.choice(_TOKENS)
            case _:
                del data[at:]
    return bytes(data)


def _with_a_strange_value(sample: bytes, rng: Random) -> bytes | None:
    """One of the JSON (or YAML) values of one of its lines, or of it all, replaced or removed."""
    try:
        return _write(_replaced(json.loads(sample), rng))
    except ValueError:
        pass
    lines = sample.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        lines[at] = _write(_replaced(json.loads(lines[at]), rng))
        return b"\n".join(lines)
    except ValueError:
        pass
    try:
        tree = yaml.safe_load(sample)
    except (yaml.YAMLError, ValueError):
        return None
    if not isinstance(tree, dict):
        return None
    return yaml.safe_dump(json.loads(_write(_replaced(tree, rng)))).encode("utf-8", "replace")


def _write(value: Any) -> bytes:
    return json.dumps(value, default=str).encode("utf-8", "surrogatepass")


def _replaced(tree: Any, rng: Random) -> Any:
    tree = copy.deepcopy(tree)
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        pairs = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in pairs:
            places.append((node, key))
            if isinstance(value, dict | list):
                visit(value)

    if isinstance(tree, dict | list):
        visit(tree)
    if not places:
        return rng.choice(_STRANGE)
    node, key = rng.choice(places)
    if rng.random() < 0.3:
        del node[key]
    else:
        node[key] = rng.choice(_STRANGE)
    return tree


# --- the parsers ----------------------------------------------------------------------------


def parsers(folder: Path) -> dict[str, Parser]:
    """Every parser of ours by name, with samples of what it reads."""
    return {
        "plan": Parser(
            (_PLAN,),
            lambda data, at: parse_plan(data.decode(errors="replace"), name="plan", folder=at),
        ),
        "manifest": Parser((_manifest(folder),), _read_manifest),
        "tar snapshot file": Parser((_SNAR,), _read_snar),
        "tar listing": Parser(
            (
                b'drwxr-xr-x 0/0 0 2026-01-01 00:00 "./"\n'
                b'hrw------- 0/0 3 2026-01-01 00:00 "./a\\n" link to "./b"\n',
            ),
            lambda data, at: list(read_listing(_written(at / "listing", data))),
        ),
        "restic snapshots": Parser((_RESTIC,), lambda data, at: read_snapshots(data)),
        "borg archives": Parser((_BORG,), lambda data, at: names_of_archives(data)),
        "pgbackrest info": Parser((_PGBACKREST,), lambda data, at: read_info(data)),
        "audit of restic": Parser((_RESTIC,), _audited_backups("restic")),
        "audit of borg": Parser((_BORG,), _audited_backups("borg")),
        "audit of restic, contents": Parser((_RESTIC_LS,), _audited_contents("restic")),
        "audit of borg, contents": Parser((_BORG_LIST,), _audited_contents("borg")),
        "audit of tar, contents": Parser((_TAR_LIST,), _audited_contents("directory")),
        "marks": Parser((b"2026-11-01T10:00:00Z\n2026-11-02T10:00:00+01:00\n",), _read_marks),
        "coverage": Parser((_coverage(folder),), _read_coverage),
        "drill record": Parser((_RECORD,), _read_record),
        "evidence chain": Parser((_chain(),), lambda data, at: check_chain(data)),
        "evidence envelope": Parser(
            (_chain().split(b"\n")[0],), lambda data, at: envelope.parse(data)
        ),
        "evidence statement": Parser(
            (envelope.parse(_chain().split(b"\n")[0]).payload,),
            lambda data, at: statement.parse(data),
        ),
        "evidence clock": Parser((_clock(folder),), _read_clock),
        "lease": Parser((_LEASE,), _read_lease),
        "outbox": Parser((_OUTBOX,), _read_outbox),
        "receipts": Parser((_RECEIPT,), _read_receipts),
        "access log": Parser((_ACCESS_LOG,), _read_access_log),
        "exposition": Parser((_EXPOSITION,), _read_exposition),
        "sketch": Parser(
            (b'{"1": 2.0, "8192": 5}',), lambda data, at: sketch_from(data.decode(errors="replace"))
        ),
    }


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _manifest(folder: Path) -> bytes:
    tree = folder / "tree"
    (tree / "sub").mkdir(parents=True, exist_ok=True)
    (tree / "sub" / "file").write_bytes(b"content")
    manifest.capture(tree, folder / "sound.parquet")
    return (folder / "sound.parquet").read_bytes()


def _read_manifest(data: bytes, at: Path) -> None:
    found = _written(at / "fuzzed.parquet", data)
    manifest.read_info(found)
    manifest.read(found)
    manifest.compare(at / "sound.parquet", found)


def _read_snar(data: bytes, at: Path) -> None:
    found = _written(at / "snar", data)
    snar.started_at(found)
    snar.forget_moved(found, at / "tree")


def _reader(tool: str, data: bytes, at: Path) -> Any:
    """A repository whose tool says `data`."""
    places = {
        "restic": Repository(restic="rest:https://backups/x", password="env:PATH"),
        "borg": Repository(borg="ssh://backups/x"),
        "directory": Repository(directory=at),
    }
    reader: Any = open_repository(places[tool], at, lambda: 1.0, {})
    reader._run = lambda *words, **more: Finished(0, data, b"")
    return reader


def _audited_backups(tool: str) -> Callable[[bytes, Path], object]:
    return lambda data, at: _reader(tool, data, at).backups()


def _audited_contents(tool: str) -> Callable[[bytes, Path], object]:
    backup = Backup("id", "name", datetime.now(UTC), ("/data",))
    return lambda data, at: _reader(tool, data, at).contents(backup)


def _read_marks(data: bytes, at: Path) -> None:
    _written(at / "marks", data)
    newest_mark(at, "marks")


def _coverage(folder: Path) -> bytes:
    ledger = CoverageLedger(folder / "sound-coverage")
    ledger.note([b"a", b"b\xff"], datetime.now(UTC))
    ledger.save()
    return (folder / "sound-coverage").read_bytes()


def _read_coverage(data: bytes, at: Path) -> None:
    ledger = CoverageLedger(_written(at / "coverage", data))
    ledger.stalest([b"a", b"c"], 1)
    ledger.outside([b"a", b"c"], 30, datetime.now(UTC))


def _read_record(data: bytes, at: Path) -> None:
    _written(at / RECORD, data)
    record = read_record(at)
    _ = record.reason, record.automated_verdict, record.objectives, record.system_snapshot


@functools.cache
def _chain() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        folder = home / "drills" / "d" / "2026-11-01" / "run"
        folder.mkdir(parents=True)
        (folder / RECORD).write_bytes(_RECORD)
        seal(home, folder, json.loads(_RECORD))
        return (home / "evidence" / "chain.jsonl").read_bytes()


def _clock(folder: Path) -> bytes:
    clock.remember(folder, clock.Clock("boot", 5.0, datetime.now(UTC)))
    return (folder / _CLOCK).read_bytes()


def _read_clock(data: bytes, at: Path) -> None:
    now = clock.Clock("boot", 6.0, datetime.now(UTC))
    _written(at / _CLOCK, data)
    clock.doubt(at, now, now.now)
    clock.is_jump(at, now)


def _read_lease(data: bytes, at: Path) -> None:
    path = _written(at / "abc.json", data)
    fd = os.open(path, os.O_RDONLY)
    try:
        read_lease(path, fd)
    finally:
        os.close(fd)


def _read_outbox(data: bytes, at: Path) -> None:
    folder = at / "notifications" / "outbox" / "20260101T000000000000-0"
    folder.mkdir(parents=True, exist_ok=True)
    _written(folder / "message.json", data)
    plan = parse_plan(_PLAN.decode(), name="plan", folder=at)
    receipts(plan.data_home)
    send_pending(plan)
    shutil.rmtree(at / "notifications")


def _read_receipts(data: bytes, at: Path) -> None:
    (at / "notifications").mkdir(exist_ok=True)
    _written(at / "notifications" / "receipts.jsonl", data)
    receipts(at)
    forget(at, 365.0)
    shutil.rmtree(at / "notifications")


def _read_access_log(data: bytes, at: Path) -> None:
    source = AccessLogSource(_written(at / "access.log", b""))
    source.since_last_look()
    _written(at / "access.log", data)
    source.since_last_look()
    if source._file is not None:
        os.close(source._file)


def _read_exposition(data: bytes, at: Path) -> None:
    service: Any = None
    source: Any = PrometheusSource(service, Prometheus(endpoint="/metrics"))
    for text in (_EXPOSITION, data):
        points = list(read_exposition(text.decode(errors="replace")))
        source._scrape = lambda points=points: points
        source.since_last_look()


_PLAN = b"""
data_home: .
targets:
  documents:
    repository: {directory: /srv/backups, match: "*.tar"}
    verify_against: {live: /srv/documents}
    sample: {bad_share: 0.1}
    objectives: {rpo_seconds: 3600}
"""
_SNAR = (
    b"GNU tar-1.34-2\n1700000000\x00123456789\x00"
    b"0\x001700000000\x005\x0064\x00100\x00.\x00Dsub\x00\x00\x00"
    b"0\x001700000000\x005\x0064\x00101\x00./sub\x00Yfile\x00\x00\x00"
)
_RESTIC = (
    b'[{"id": "'
    + b"a" * 64
    + b'", "short_id": "aaaaaaaa", "time": "2026-11-01T10:00:00.123456789Z", '
    b'"tree": "' + b"b" * 64 + b'", "paths": ["/data"], "hostname": "team"}]'
)
_RESTIC_LS = (
    b'{"time": "2026-11-01T10:00:00Z", "tree": "b", "paths": ["/data"]}\n'
    b'{"name": "data", "type": "dir", "path": "/data", "struct_type": "node"}\n'
    b'{"name": "a", "type": "file", "path": "/data/a", "size": 5, "struct_type": "node"}\n'
)
_BORG = (
    b'{"archives": [{"id": "'
    + b"c" * 64
    + b'", "name": "first", "start": "2026-11-01T10:00:00.000000"}]}'
)
_BORG_LIST = b'{"type": "-", "path": "a", "size": 5}\n{"type": "d", "path": "sub"}\n'
_TAR_LIST = b'drwxr-xr-x 0/0 0 2026-01-01 00:00 "./"\n-rw-r--r-- 0/0 5 2026-01-01 00:00 "./a\\n"\n'
_PGBACKREST = json.dumps(
    [
        {
            "status": {"code": 0},
            "backup": [
                {
                    "label": "20261101-100000F",
                    "type": "full",
                    "prior": None,
                    "timestamp": {"start": 1, "stop": 1_790_000_000},
                    "info": {"repository": {"delta": 5}},
                    "archive": {
                        "start": "000000010000000000000001",
                        "stop": "000000010000000000000002",
                    },
                    "error": False,
                }
            ],
        }
    ]
).encode()
_RECORD = json.dumps(
    {
        "drill": "d",
        "scenario": "corruption_recovery",
        "month": "2026-11-01",
        "run_id": "run",
        "target": "t",
        "engine": "tar",
        "started_at": "2026-11-01T10:00:00+00:00",
        "ended_at": "2026-11-01T10:05:00+00:00",
        "system_snapshot": {},
        "canaries": [],
        "verdict": "PASS",
        "automated_verdict": "PASS",
        "checks": [{"name": "c", "verdict": "PASS", "expected": "e", "found": "f"}],
        "errors": [],
        "messages": [],
        "not_tested": [],
        "metrics": {"recovery_seconds": 1.5},
        "objectives": {"rto_seconds": 5.0},
        "manual_verification": {"required_checks": ["user_access"]},
    }
).encode()
_LEASE = (
    b'{"token": "abc", "label": "drill", "pid": 5}\n'
    b'{"kind": "directory", "name": "/x", "device": 1, "inode": 2}\n'
)
_RECEIPT_FIELDS = {
    "message_id": "20260101T000000000000-0",
    "subject": "s",
    "team": "admin_team",
    "channel": "log",
    "recipient": "log",
    "key": "log",
    "state": "pending",
    "attempts": 1,
    "queued_at": "2026-01-01T00:00:00+00:00",
    "last_attempt_at": "2026-01-01T00:00:00+00:00",
    "reason": "",
    "unsure": False,
}
_RECEIPT = json.dumps(_RECEIPT_FIELDS).encode() + b"\n"
_OUTBOX = json.dumps(
    {
        "message": {
            "id": "20260101T000000000000-0",
            "at": "2026-01-01T00:00:00+00:00",
            "teams": ["admin_team"],
            "subject": "s",
            "details": {"drill": "d"},
            "attachments": [],
        },
        "recipients": [_RECEIPT_FIELDS],
    }
).encode()
_ACCESS_LOG = (
    b'10.0.0.1 - - [01/Nov/2026:10:00:00 +0000] "GET / HTTP/1.1" 200 512 "-" "x" 0.012\n'
    b'10.0.0.1 - - [01/Nov/2026:10:00:01 +0000] "GET /x HTTP/1.1" 503 -\n'
)
_EXPOSITION = (
    b'# TYPE x counter\nhttp_requests_total{status="200"} 5\n'
    b'http_requests_total{status="503"} 1e3\n'
    b'http_request_duration_seconds_bucket{le="0.1"} 3\n'
    b'http_request_duration_seconds_bucket{le="+Inf"} 5\n'
    b"http_request_duration_seconds_count 5\nhttp_request_duration_seconds_sum 0.5\n"
)
