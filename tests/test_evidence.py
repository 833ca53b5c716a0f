"""Evidence: every change is seen, nothing is skipped, and no kill or crowd breaks the chain.

A campaign does more of the same: EVIDENCE_KILLS=200 EVIDENCE_SEALS=50 pytest tests/test_evidence.py
"""

import base64
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from recovery_pipelines import evidence
from recovery_pipelines.drills.record import folder_of, result_folders
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import Entry, Report, envelope, files, keys, mapping, statement
from recovery_pipelines.evidence.chain import check_chain, read_chain
from recovery_pipelines.verdict import Verdict
from tests.plans import MONTH, make_spec

PROJECT = Path(__file__).parent.parent
KILLS = int(os.environ.get("EVIDENCE_KILLS", "40"))
SEALS_PER_PROCESS = int(os.environ.get("EVIDENCE_SEALS", "10"))
PROCESSES = 4
RECOVERY = str(Path(sys.executable).with_name("recovery"))
# Root reads everything: without its capabilities it is an ordinary user.
WITHOUT_RIGHTS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
fork = multiprocessing.get_context("fork")


def record_of(number: int, month: str = MONTH) -> dict[str, Any]:
    """A record as drills write it, with little in it."""
    return {
        "drill": "corruption_recovery_tar",
        "scenario": "corruption_recovery",
        "target": "documents",
        "engine": "tar",
        "month": month,
        "run_id": f"run-{number}",
        "started_at": "2026-11-01T03:00:00+00:00",
        "ended_at": "2026-11-01T03:10:00+00:00",
        "verdict": Verdict.PASS,
        "checks": [
            {"name": "checksums_match", "verdict": "PASS", "expected": "a", "found": "salaries.csv"}
        ],
        "canaries": [{"check": "checksums_match", "path": "salaries.csv", "caught": True}],
        "errors": [],
        "messages": ["salaries.csv was odd"],
        "not_tested": [],
        "objectives": {"rto_seconds": 60.0, "rpo_seconds": None},
        "metrics": {"files": 3, "recovery_seconds": 1.5, "rpo_seconds": None},
        "system_snapshot": {"host": "drillhost", "engine_version": "1.34", "load_1m": 0.5},
    }


def results(home: Path, number: int, month: str = MONTH) -> Path:
    """A small result folder."""
    record = record_of(number, month)
    folder = folder_of(home, record["drill"], month, record["run_id"])
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "journal.jsonl").write_text(f'{{"event": "started {number}"}}\n')
    (folder / "faults.parquet").write_bytes(Random(number).randbytes(100))
    return folder


def seal(home: Path, number: int, month: str = MONTH) -> Entry:
    return evidence.seal(home, results(home, number, month), record_of(number, month))


def public_path(home: Path) -> Path:
    return home / "evidence" / "key.pub.pem"


def chain_path(home: Path) -> Path:
    return home / "evidence" / "chain.jsonl"


def verify(home: Path, **options: Any) -> Report:
    trusted = keys.read_public(public_path(home))
    return evidence.verify(home, trusted, results=result_folders(home), **options)


def recovery(*argv: str | Path, rights: bool = True) -> subprocess.CompletedProcess[str]:
    command = [*([] if rights else WITHOUT_RIGHTS), RECOVERY, "evidence", *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of a key, two drills, another key, and a third drill."""
    home = tmp_path_factory.mktemp("made")
    seal(home, 1, "2026-09-01")
    seal(home, 2, "2026-10-01")
    evidence.rotate_key(home)
    seal(home, 3, "2026-11-01")
    return home


@pytest.fixture
def home(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "home"))


@pytest.fixture(scope="module")
def sound(made: Path) -> bytes:
    return chain_path(made).read_bytes()


def is_accepted(content: bytes) -> bool:
    try:
        check_chain(content)
    except EvidenceError:
        return False
    return True


# --- what is sound is verified ----------------------------------------------------------


def test_a_sound_chain_is_verified_with_each_key_that_signed(home: Path) -> None:
    report = verify(home)
    assert report.is_verified
    assert report.chain is not None
    entries = report.chain.entries
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.seq for entry in report.verified] == [2, 3, 5]
    assert len(report.chain.key_ids) == 2
    pem = entries[0].predicate["public_key"]
    first = keys.parse_public(pem, "the first entry")
    assert keys.key_id(first) != report.chain.head.key_id
    for entry in entries:
        assert evidence.verify(home, first, head=entry.digest).is_verified


def test_sealing_again_changes_nothing(home: Path, sound: bytes) -> None:
    folder = folder_of(home, "corruption_recovery_tar", "2026-10-01", "run-2")
    assert evidence.seal(home, folder, record_of(2)) == read_chain(home).entries[2]
    (folder / "journal.jsonl").write_text("")
    with pytest.raises(EvidenceError, match="changed since"):
        evidence.seal(home, folder, record_of(2))
    assert chain_path(home).read_bytes() == sound


def test_envelopes_name_no_files_of_the_target_and_hold_no_key(made: Path) -> None:
    for entry in read_chain(made).entries:
        text = json.dumps([entry.predicate, dict(entry.files)])
        assert "salaries" not in text
        assert "PRIVATE" not in text
    predicate = read_chain(made).head.predicate
    assert predicate["checks"] == {"checksums_match": "PASS"}
    assert predicate["measured"] == {"files": 3, "recovery_seconds": 1.5, "rpo_seconds": None}
    assert predicate["objectives"] == {"rto_seconds": 60.0, "rpo_seconds": None}
    assert predicate["self_test"] == {"copies": 1, "judged_rightly": 1}


# --- what was changed is rejected -------------------------------------------------------


def test_every_flipped_byte_of_the_chain_is_seen(sound: bytes) -> None:
    accepted = []
    for position in range(len(sound)):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << position % 8
        if is_accepted(bytes(flipped)):
            accepted.append(position)
    assert accepted == []


def test_every_flipped_byte_of_every_sealed_file_is_seen(home: Path) -> None:
    checked = 0
    for path in sorted((home / str(read_chain(home).head.folder)).iterdir()):
        content = path.read_bytes()
        for position in range(len(content)):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            path.write_bytes(flipped)
            assert verify(home).broken == [f"{path} was changed"]
            checked += 1
        path.write_bytes(content)
    assert checked > 500
    assert verify(home).is_verified


def test_lines_dropped_swapped_doubled_or_torn_are_seen(sound: bytes) -> None:
    lines = sound.splitlines(keepends=True)
    count = len(lines)
    wrong = [
        *(lines[:at] + lines[at + 1 :] for at in range(count - 1)),
        *(lines[:at] + lines[at : at + 1] + lines[at:] for at in range(count)),
        *([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]] for at in range(count - 1)),
        *([*lines, line] for line in lines),
        *([*lines[:at], b"\n", *lines[at:]] for at in range(count + 1)),
        [line.replace(b"\n", b"\r\n") for line in lines],
        [b"\xef\xbb\xbf", *lines],
        [b" ", *lines],
        [],
    ]
    assert [at for at, content in enumerate(wrong) if is_accepted(b"".join(content))] == []
    ends = {len(b"".join(lines[:kept])) for kept in range(1, count + 1)}
    whole = {size for size in range(len(sound) + 1) if is_accepted(sound[:size])}
    assert whole == ends, "a cut within a line is seen"


def test_a_cut_tail_is_seen_with_a_published_head_and_not_without(home: Path) -> None:
    head = read_chain(home).head
    lines = chain_path(home).read_bytes().splitlines(keepends=True)
    chain_path(home).write_bytes(b"".join(lines[:3]))
    first = keys.parse_public(read_chain(home).entries[0].predicate["public_key"], "entry 1")
    cut = evidence.verify(home, first, results=result_folders(home))
    assert not cut.is_verified
    assert "never sealed" in cut.undecided[0], "the results are still there"
    shutil.rmtree(home / str(head.folder))
    hidden = evidence.verify(home, first, results=result_folders(home))
    assert hidden.is_verified, "as docs/evidence.md says"
    found = evidence.verify(home, first, head=head.digest)
    assert "published head" in found.broken[0]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_edits_are_seen(sound: bytes, data: st.DataObject) -> None:
    lines = sound.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "copy", "replace", "insert", "delete"])):
            case "drop" if len(lines) > 1:
                del lines[at]
            case "copy":
                lines.insert(data.draw(st.integers(0, len(lines))), lines[at])
            case edit:
                start = data.draw(st.integers(0, len(lines[at])))
                size = 0 if edit == "insert" else data.draw(st.integers(1, 40))
                new = b"" if edit == "delete" else data.draw(st.binary(min_size=1, max_size=40))
                lines[at] = lines[at][:start] + new + lines[at][start + size :]
    content = b"".join(lines)
    assert sound.startswith(content) or not is_accepted(content)


# --- what another wrote is rejected -----------------------------------------------------


class Forger:
    """Writes entries as ours are written, with any keys, places and contents."""

    def __init__(self) -> None:
        self.keys = [Ed25519PrivateKey.generate() for _ in range(3)]
        self.lines: list[bytes] = []

    def payload_of_key(self, key: int) -> bytes:
        public = self.keys[key].public_key()
        return statement.key_statement(keys.public_pem(public), keys.key_id(public), *self.place())

    def payload_of_drill(self, number: int, folder: str = "") -> bytes:
        sealed = {"record.json": "0" * 64}
        return statement.drill_statement(
            folder or f"drills/{number}", sealed, record_of(number), *self.place()
        )

    def place(self) -> tuple[int, str]:
        last = self.lines[-1] if self.lines else None
        prev = hashlib.sha256(last).hexdigest() if last else "0" * 64
        return len(self.lines) + 1, prev

    def add(self, payload: bytes, *signers: int) -> "Forger":
        self.lines.append(envelope.sign(payload, [self.keys[key] for key in signers]))
        return self

    def edit_last(self, change: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads(self.lines[-1])
        change(content)
        self.lines[-1] = json.dumps(content, separators=(",", ":")).encode()

    @property
    def content(self) -> bytes:
        return b"".join(line + b"\n" for line in self.lines)


def unsigned(forger: Forger) -> None:
    forger.edit_last(lambda content: content.update(signatures=[]))


def without_signatures(forger: Forger) -> None:
    forger.edit_last(lambda content: content.pop("signatures"))


def signed_by_another_key(forger: Forger) -> None:
    forger.lines.pop()
    forger.add(forger.payload_of_drill(2), 1)


def signed_by_another_key_under_the_right_name(forger: Forger) -> None:
    right = json.loads(forger.lines[-1])["signatures"][0]["keyid"]
    signed_by_another_key(forger)
    forger.edit_last(lambda content: content["signatures"][0].update(keyid=right))


def signed_twice(forger: Forger) -> None:
    forger.lines.pop()
    forger.add(forger.payload_of_drill(2), 0, 0)


def of_another_payload_type(forger: Forger) -> None:
    forger.edit_last(lambda content: content.update(payloadType="application/json"))


def signed_as_another_payload_type(forger: Forger) -> None:
    payload = base64.b64decode(json.loads(forger.lines[-1])["payload"])
    text = b"DSSEv1 16 application/json %d %b" % (len(payload), payload)
    signature = base64.b64encode(forger.keys[0].sign(text)).decode()
    forger.edit_last(lambda content: content["signatures"][0].update(sig=signature))


def of_another_payload(forger: Forger) -> None:
    payload = base64.b64encode(forger.payload_of_drill(9)).decode()
    forger.edit_last(lambda content: content.update(payload=payload))


def replayed(forger: Forger) -> None:
    forger.lines.append(forger.lines[1])


def from_another_chain_of_the_same_key(forger: Forger) -> None:
    other = Forger()
    other.keys = forger.keys
    other.add(other.payload_of_key(0), 0).add(other.payload_of_drill(8), 0)
    forger.lines[-1] = other.add(other.payload_of_drill(2), 0).lines[-1]


def the_same_folder_again(forger: Forger) -> None:
    forger.add(forger.payload_of_drill(2), 0)


def signed_by_a_retired_key(forger: Forger) -> None:
    forger.add(forger.payload_of_key(1), 0, 1).add(forger.payload_of_drill(3), 0)


def a_new_key_without_the_old_one(forger: Forger) -> None:
    forger.add(forger.payload_of_key(1), 1)


def a_new_key_that_did_not_sign(forger: Forger) -> None:
    forger.add(forger.payload_of_key(1), 0)


def a_new_key_under_another_signature(forger: Forger) -> None:
    forger.add(forger.payload_of_key(1), 0, 2)


def no_key_first(forger: Forger) -> None:
    forger.lines.clear()
    forger.add(forger.payload_of_drill(1), 0)


def a_folder_outside(forger: Forger) -> None:
    forger.add(forger.payload_of_drill(3, folder="drills/../../etc"), 0)


def an_absolute_folder(forger: Forger) -> None:
    forger.add(forger.payload_of_drill(3, folder="/etc"), 0)


def of_an_unknown_kind(forger: Forger) -> None:
    payload = forger.payload_of_drill(3).replace(b"drill:v1", b"drill:v2")
    forger.add(payload, 0)


def no_statement(forger: Forger) -> None:
    forger.add(b'{"subject": 1}', 0)


def deep_nonsense(forger: Forger) -> None:
    forger.add(b"[" * 100_000, 0)


FORGERIES = [
    unsigned,
    without_signatures,
    signed_by_another_key,
    signed_by_another_key_under_the_right_name,
    signed_twice,
    of_another_payload_type,
    signed_as_another_payload_type,
    of_another_payload,
    replayed,
    from_another_chain_of_the_same_key,
    the_same_folder_again,
    signed_by_a_retired_key,
    a_new_key_without_the_old_one,
    a_new_key_that_did_not_sign,
    a_new_key_under_another_signature,
    no_key_first,
    a_folder_outside,
    an_absolute_folder,
    of_an_unknown_kind,
    no_statement,
    deep_nonsense,
]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_forged_entries_are_rejected(forge: Callable[[Forger], None]) -> None:
    forger = Forger()
    forger.add(forger.payload_of_key(0), 0)
    forger.add(forger.payload_of_drill(1), 0).add(forger.payload_of_drill(2), 0)
    assert is_accepted(forger.content)
    forge(forger)
    assert not is_accepted(forger.content)


def test_a_whole_chain_by_another_key_is_rejected(home: Path, tmp_path: Path) -> None:
    trusted = keys.read_public(public_path(home))
    shutil.rmtree(home / "evidence")
    for number, month in enumerate(("2026-09-01", "2026-10-01", "2026-11-01"), 1):
        folder = folder_of(home, "corruption_recovery_tar", month, f"run-{number}")
        evidence.seal(home, folder, record_of(number, month))
    assert verify(home).is_verified, "with the key that lies beside it"
    assert "did not sign" in evidence.verify(home, trusted).broken[0]


# --- folders ----------------------------------------------------------------------------


def _replace_by_link(path: Path) -> None:
    moved = path.rename(path.parents[4] / "elsewhere")
    path.symlink_to(moved)


def _add_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))


FOLDER_CHANGES: dict[str, Callable[[Path], object]] = {
    "file deleted": Path.unlink,
    "file emptied": lambda path: path.write_bytes(b""),
    "file grown": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "file added": lambda path: path.with_name("extra").write_bytes(b""),
    "hidden file added": lambda path: path.with_name(".extra").write_bytes(b""),
    "odd name added": lambda path: path.with_name("new\nline").write_bytes(b""),
    "file renamed": lambda path: path.rename(path.with_name("renamed")),
    "file swapped": lambda path: path.write_bytes(path.with_name("journal.jsonl").read_bytes()),
    "file linked to the same content": _replace_by_link,
    "dangling link added": lambda path: path.with_name("link").symlink_to("nowhere"),
    "fifo added": _add_fifo,
    "folder added": lambda path: path.with_name("sub").mkdir(),
    "folder deleted": lambda path: shutil.rmtree(path.parent),
    "folder moved": lambda path: path.parent.rename(path.parent.with_name("another")),
    "folder linked to the same content": lambda path: _replace_by_link(path.parent),
    "folder is a file": lambda path: (shutil.rmtree(path.parent), path.parent.write_text("")),
}


@pytest.mark.parametrize("change", FOLDER_CHANGES)
def test_a_changed_folder_is_not_verified(change: str, home: Path) -> None:
    FOLDER_CHANGES[change](home / str(read_chain(home).head.folder) / "faults.parquet")
    report = verify(home)
    assert report.broken
    assert [entry.seq for entry in report.verified] == [2, 3]


@pytest.mark.parametrize(
    "change",
    [
        "odd name added",
        "file linked to the same content",
        "dangling link added",
        "fifo added",
        "folder added",
        "folder deleted",
        "folder linked to the same content",
    ],
)
def test_a_folder_with_anything_but_plain_files_is_not_sealed(
    change: str, home: Path, sound: bytes
) -> None:
    folder = results(home, 4)
    FOLDER_CHANGES[change](folder / "faults.parquet")
    with pytest.raises((EvidenceError, OSError)):
        evidence.seal(home, folder, record_of(4))
    assert chain_path(home).read_bytes() == sound


def test_what_cannot_be_read_is_never_skipped(home: Path) -> None:
    """EACCES on each thing: no answer for the reader, no seal for the writer."""
    folder = results(home, 4)
    code = (
        "import json, sys; from pathlib import Path; from recovery_pipelines import evidence; "
        "evidence.seal(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))"
    )
    record = json.dumps(record_of(4))
    before = chain_path(home).read_bytes()
    head_folder = home / str(read_chain(home).head.folder)
    for locked in (head_folder / "faults.parquet", head_folder, chain_path(home)):
        mode = locked.stat().st_mode
        locked.chmod(0)
        done = recovery("verify", "--home", home, rights=False)
        locked.chmod(mode)
        assert done.returncode == 2, (locked, done.stdout, done.stderr)
    for locked in (folder / "record.json", folder, chain_path(home), home / "evidence" / "key.pem"):
        mode = locked.stat().st_mode
        locked.chmod(0)
        done = subprocess.run(
            [*WITHOUT_RIGHTS, sys.executable, "-c", code, home, folder, record],
            capture_output=True,
            text=True,
            cwd=PROJECT,
        )
        locked.chmod(mode)
        assert "PermissionError" in done.stderr, (locked, done.stderr)
        assert chain_path(home).read_bytes() == before


# --- keys -------------------------------------------------------------------------------


def test_the_private_key_is_private(home: Path, sound: bytes) -> None:
    private = home / "evidence" / "key.pem"
    assert private.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in private.parent.iterdir()) == [
        "chain.jsonl",
        "key.pem",
        "key.pub.pem",
        "tip.json",
    ]
    private.chmod(0o640)
    with pytest.raises(EvidenceError, match="others"):
        seal(home, 4)
    assert chain_path(home).read_bytes() == sound


LOSSES: dict[str, Callable[[Path], object]] = {
    "the chain is missing": lambda folder: (folder / "chain.jsonl").unlink(),
    "the chain is empty": lambda folder: (folder / "chain.jsonl").write_bytes(b""),
    "the key is missing": lambda folder: (folder / "key.pem").unlink(),
    "the key is broken": lambda folder: (folder / "key.pem").write_bytes(b"no key"),
    "the key is another": lambda folder: (
        keys.propose(folder),
        (folder / "next-key.pem").replace(folder / "key.pem"),
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_is_sealed_where_something_is_lost(loss: str, home: Path) -> None:
    LOSSES[loss](home / "evidence")
    before = {path: path.read_bytes() for path in sorted((home / "evidence").iterdir())}
    with pytest.raises(EvidenceError):
        seal(home, 4)
    with pytest.raises(EvidenceError):
        evidence.rotate_key(home)
    assert {path: path.read_bytes() for path in sorted((home / "evidence").iterdir())} == before


def test_a_lost_public_key_comes_back(home: Path) -> None:
    public = public_path(home).read_bytes()
    public_path(home).unlink()
    seal(home, 4)
    assert public_path(home).read_bytes() == public


# --- kills and crowds -------------------------------------------------------------------


def kill_at_line(number: int, work: Callable[[], object]) -> bool:
    """Do `work` in a child that kills itself before the n-th line that it runs of the functions
    that change what is on disk; whether it was killed."""
    watched = [
        files.append_line,
        files.replace_file,
        files.rename,
        files.settle_append,
        keys.propose,
        keys.settle,
    ]
    watched_codes = {function.__code__ for function in watched}
    pid = os.fork()
    if pid == 0:
        left = number

        def trace(frame: FrameType, event: str, _arg: object) -> Any:
            nonlocal left
            if frame.f_code not in watched_codes:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(None)
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("what", "lengths"), [("first seal", {0, 1, 2}), ("seal", {5, 6}), ("rotate", {5, 6})]
)
def test_a_kill_before_any_line_leaves_the_old_or_the_new_chain(
    what: str, lengths: set[int], made: Path, tmp_path: Path
) -> None:
    """The first seal makes two entries: the one about its key comes before its own."""
    seen: set[int] = set()
    line, killed = 0, True
    while killed:
        line += 1
        home = tmp_path / str(line)
        if what != "first seal":
            shutil.copytree(made, home)
        folder = results(home, 4)

        def work(home: Path = home, folder: Path = folder) -> object:
            if what == "rotate":
                return evidence.rotate_key(home)
            return evidence.seal(home, folder, record_of(4))

        killed = kill_at_line(line, work)
        count = len(read_chain(home).entries) if chain_path(home).exists() else 0
        seen.add(count)
        again = evidence.seal(home, folder, record_of(4))
        assert again.seq == (count + 1 if what == "rotate" else max(lengths))
        report = verify(home)
        assert report.is_verified
        assert report.chain is not None
        assert report.chain.head == report.verified[-1] == again
        shutil.rmtree(home)
    assert seen == lengths
    assert line > 15


def test_an_append_that_stopped_anywhere_is_undone_or_finished(
    home: Path, sound: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one whose bytes a power cut turned into zeros."""
    path = chain_path(home)
    waiting = path.with_name("chain.jsonl.next")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_args, **_options: None)
        seal(home, 4)
    whole, kept, numbers = path.read_bytes(), waiting.read_bytes(), count(1000)
    for size in range(len(sound), len(whole) + 1, 37):
        for tail in (whole[len(sound) : size], bytes(size - len(sound))):
            path.write_bytes(sound + tail)
            waiting.write_bytes(kept)
            assert len(read_chain(home).entries) == 5
            assert seal(home, next(numbers)).seq == 6
            assert not waiting.exists()
            assert read_chain(home).content.startswith(sound)
    path.write_bytes(whole)
    waiting.write_bytes(kept)
    assert seal(home, 5).seq == 7
    path.write_bytes(whole[:-10])
    with pytest.raises(EvidenceError, match="cut off"):
        read_chain(home)


def test_a_remembered_tip_never_stands_for_another_chain(home: Path) -> None:
    seal(home, 4)
    sound = chain_path(home).read_bytes()
    for position in range(0, len(sound), 101):
        flipped = bytearray(sound)
        flipped[position] ^= 1
        chain_path(home).write_bytes(flipped)
        with pytest.raises(EvidenceError):
            seal(home, 1000 + position)
        assert chain_path(home).read_bytes() == flipped
    chain_path(home).write_bytes(sound)
    for content in (b"", b"{}", b"null", b'{"seq": 99}', b"\xff" * 99):
        (home / "evidence" / "tip.json").write_bytes(content)
        assert evidence.seal(home, home / str(read_chain(home).head.folder), record_of(4)).seq == 6


def test_kills_at_random_instants_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    home, random = tmp_path / "home", Random(1)
    acknowledged: set[str] = set()
    number = 0
    for _ in range(KILLS):
        folders = [results(home, number + at) for at in range(30)]
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for at, folder in enumerate(folders):
                    evidence.seal(home, folder, record_of(number + at))
                    os.write(writer, folder.relative_to(home).as_posix().encode() + b"\n")
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            said = [pipe.readline().strip() for _ in range(random.randrange(len(folders)))]
            time.sleep(random.uniform(0.0, 0.01))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            said += pipe.read().splitlines()
        acknowledged.update(said)
        found = (
            [entry.folder for entry in read_chain(home).drills] if chain_path(home).exists() else []
        )
        assert len(found) == len(set(found))
        assert acknowledged <= set(found)
        assert len(set(found) - acknowledged) <= 1, "at most the one in hand"
        acknowledged |= {str(folder) for folder in found}
        number += 30
        for folder in folders:
            if folder.relative_to(home).as_posix() not in acknowledged:
                shutil.rmtree(folder)
    assert acknowledged
    assert verify(home).is_verified


def _seal_many(home: Path, first: int) -> None:
    for number in range(first, first + SEALS_PER_PROCESS):
        seal(home, number)


def test_processes_that_seal_at_once_lose_nothing(tmp_path: Path) -> None:
    crowd = [
        fork.Process(target=_seal_many, args=(tmp_path, turn * SEALS_PER_PROCESS))
        for turn in range(PROCESSES)
    ]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join()
    assert [process.exitcode for process in crowd] == [0] * PROCESSES
    report = verify(tmp_path)
    assert report.is_verified
    assert len(report.verified) == PROCESSES * SEALS_PER_PROCESS


# --- the commands -----------------------------------------------------------------------


def test_verify_needs_the_files_and_a_public_key_only(home: Path, tmp_path: Path) -> None:
    public = Path(shutil.copy(public_path(home), tmp_path / "auditor.pem"))
    for name in ("key.pem", "key.pub.pem"):
        (home / "evidence" / name).unlink()
    head = read_chain(home).head.digest
    command = ("verify", "--home", home, "--key", public)
    assert recovery(*command, "--head", head).returncode == 0
    assert recovery(*command, "--head", "0" * 64).returncode == 1
    assert recovery(*command, "--head", "short").returncode == 2
    assert recovery("verify", "--home", home).returncode == 2, "no key"
    (home / "drills" / "x" / "2026-11-01" / "run").mkdir(parents=True)
    (home / "drills" / "x" / "2026-11-01" / "run" / "record.json").write_text("{}")
    done = recovery(*command)
    assert (done.returncode, "never sealed" in done.stdout) == (2, True)
    (home / str(read_chain(home).head.folder) / "record.json").write_text("{}")
    assert recovery(*command).returncode == 1
    assert recovery("verify", "--home", tmp_path, "--key", public).returncode == 2, "no chain"


def test_head_and_rotate_key(home: Path) -> None:
    before = recovery("head", "--home", home).stdout.split()
    done = recovery("rotate-key", "--home", home)
    assert done.returncode == 0, done.stderr
    after = recovery("head", "--home", home).stdout.split()
    assert (before[0], after[0]) == ("5", "6")
    assert before[3] != after[3]
    assert seal(home, 4).key_id == after[3]
    assert verify(home).is_verified
    content = bytearray(chain_path(home).read_bytes())
    content[100] ^= 1
    chain_path(home).write_bytes(content)
    assert recovery("head", "--home", home).returncode == 1


def test_a_bundle_is_verified_by_itself(home: Path, tmp_path: Path) -> None:
    results(home, 4, "2026-10-01")  # never sealed, so not in the bundle
    period = ("--from", "2026-08", "--to", "2026-10")
    archives = [tmp_path / "one.zip", tmp_path / "two.zip"]
    for archive in archives:
        done = recovery("bundle", "--home", home, *period, "-o", archive)
        assert done.returncode == 0, done.stderr
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with zipfile.ZipFile(archives[0]) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "bundle")
    assert len(names) == 4 + 2 * 3
    assert not any(name.endswith("key.pem") for name in names), "no private key"
    index = (tmp_path / "bundle" / "README.md").read_text()
    assert "| 2026-08 | none sealed |" in index
    assert mapping.table() in index
    bundle = ("verify", "--home", tmp_path / "bundle", "--key", public_path(home))
    assert recovery(*bundle, *period).returncode == 0
    assert recovery(*bundle).returncode == 1, "November is not in it"

    victim = home / "drills" / "corruption_recovery_tar" / "2026-10-01" / "run-2" / "record.json"
    victim.write_text("{}")
    done = recovery("bundle", "--home", home, *period, "-o", tmp_path / "three.zip")
    assert (done.returncode, (tmp_path / "three.zip").exists()) == (1, False)
    empty = recovery("bundle", "--home", home, "--from", "2020-01", "--to", "2020-12", "-o", "/x")
    assert empty.returncode == 2


def test_the_bundle_holds_valid_oscal(tmp_path: Path) -> None:
    from trestle.oscal.assessment_results import Model

    for number, verdict in ((1, Verdict.PASS), (2, Verdict.FAIL)):
        record = record_of(number) | {"verdict": verdict}
        evidence.seal(tmp_path, results(tmp_path, number), record)
    archive = tmp_path / "bundle.zip"
    done = recovery("bundle", "--home", tmp_path, "--from=2026-11", "--to=2026-11", "-o", archive)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(archive) as opened:
        content = json.loads(opened.read("oscal-assessment-results.json"))
    (result,) = Model.model_validate(content).assessment_results.results
    assert len(result.observations) == 2
    states = [finding["target"]["status"]["state"] for finding in content_findings(content)]
    assert states == ["satisfied", "not-satisfied"]
    del content["assessment-results"]["results"][0]["start"]
    with pytest.raises(ValueError, match="start"):
        Model.model_validate(content)


def content_findings(content: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = content["assessment-results"]["results"][0]["findings"]
    return found


def documented_blocks() -> list[str]:
    text = (PROJECT / "docs" / "evidence.md").read_text()
    return re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def shell(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    argv = ["bash", "-euo", "pipefail", "-c", script]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True)


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_the_documented_commands_verify_without_this_package(tmp_path: Path) -> None:
    seal(tmp_path, 1)
    *_, check, key_in_force = documented_blocks()
    done = shell(check, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Signature Verified Successfully" in done.stdout
    assert "record.json: OK" in done.stdout
    (key_id,) = re.findall(
        r"^ {4}(openssl pkey .*)$", (PROJECT / "docs/evidence.md").read_text(), re.M
    )
    assert read_chain(tmp_path).head.key_id in shell(key_id, tmp_path).stdout

    evidence.rotate_key(tmp_path)
    assert shell(check, tmp_path).returncode != 0, "another key"
    first = check.split("\n\n")[1].partition("openssl")[0]
    setup = check.partition("\n\n")[0]
    payload = shell("\n".join([setup.replace("n=2", "n=1"), first, key_in_force]), tmp_path)
    assert payload.returncode == 0, payload.stderr
    check = check.replace("key=evidence/key.pub.pem", "key=key-in-force.pub.pem")
    assert shell(check, tmp_path).returncode == 0

    folder = tmp_path / str(read_chain(tmp_path).drills[0].folder)
    for damage in ("file grown", "file deleted", "file added"):
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        FOLDER_CHANGES[damage](folder / "faults.parquet")
        assert shell(check, tmp_path).returncode != 0, damage
        shutil.rmtree(folder)
        copy.rename(folder)
    assert shell(check, tmp_path).returncode == 0
    content = chain_path(tmp_path).read_bytes()
    second = content.index(b"\n") + 1
    for position in (60, second + 60, content.index(b'"sig"', second) + 20):
        flipped = bytearray(content)
        flipped[position] ^= 1
        chain_path(tmp_path).write_bytes(flipped)
        assert shell(check, tmp_path).returncode != 0, position


def test_the_documentation_holds_the_mapping() -> None:
    assert mapping.table() in (PROJECT / "docs" / "evidence.md").read_text()


# --- drills -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drilled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A real drill as Dagster runs it: its data home, and the metadata of its last stage."""
    import dagster as dg  # not in the processes that the tests above fork

    from recovery_pipelines.build import build_definitions

    spec = make_spec(tmp_path_factory.mktemp("drilled"), "incremental_recovery")
    job = build_definitions(spec.plan).resolve_job_def(spec.name)
    with dg.DagsterInstance.ephemeral() as instance:
        done = job.execute_in_process(instance=instance, partition_key=MONTH)
    (last,) = done.asset_materializations_for_node(f"{spec.name}__recovery_metrics")
    yield spec.plan.data_home, {name: value.value for name, value in last.metadata.items()}


def test_a_drill_is_sealed_and_its_head_published(drilled: tuple[Path, dict[str, Any]]) -> None:
    home, metadata = drilled
    head = read_chain(home).head
    assert metadata["evidence_head"] == f"{head.seq} {head.digest}"
    lines = (home / "notifications.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["evidence"] == metadata["evidence_head"]
    assert verify(home).is_verified
    assert {"record.json", "journal.jsonl", "metrics.parquet"} <= head.files.keys()
    assert head.predicate["verdict"] == metadata["verdict"] == "PASS"
    assert head.predicate["environment"]["engine_version"]


def test_a_sealed_drill_does_not_run_again(
    drilled: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    home = Path(shutil.copytree(drilled[0], tmp_path / "data"))
    run_id = read_chain(home).head.predicate["drill"]["run_id"]
    spec = make_spec(tmp_path, "incremental_recovery")
    carry_out(spec, MONTH, run_id)
    assert verify(home).is_verified, "nothing of it was touched"


def test_a_drill_that_cannot_be_sealed_is_unverified(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "evidence").write_text("a file is in the way")
    record = carry_out(make_spec(tmp_path, "incremental_recovery"), MONTH, "run")
    assert record.verdict is Verdict.UNVERIFIED
    assert "not sealed: " in record.reason
    assert {check.verdict for check in record.checks} == {Verdict.PASS}
    assert record.metrics["verdict"] == "UNVERIFIED"
    assert not record.metrics["success"]
    lines = (tmp_path / "data" / "notifications.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["evidence"].startswith("not sealed: ")
