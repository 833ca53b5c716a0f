"""The chain: `evidence/chain.jsonl` in the data home, one signed envelope a line.

Each entry names its number and the SHA-256 of the line before it. The first introduces the
signing key; a later one that introduces another is signed by both, the old key and the new. An
entry about an earlier entry names that by number and digest.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import envelope, keys, statement
from recovery_pipelines.evidence.files import (
    append_line,
    digests,
    read_lines,
    replace_file,
    settle_append,
)
from recovery_pipelines.files import replacing, sync
from recovery_pipelines.sandbox import exclusive
from recovery_pipelines.sandbox.lease import private_directory

FOLDER_NAME = "evidence"
CHAIN_NAME = "chain.jsonl"
_TIP_NAME = "tip.json"
_BEFORE_THE_FIRST = "0" * 64
_LOCK = "evidence"
_LOCK_TIMEOUT_SECONDS = 120.0
_ABOUT_ONE_ENTRY = (statement.SIGN_OFF_TYPE, statement.TIMESTAMP_TYPE)
_OF_ONE_KEY = (statement.DRILL_TYPE, statement.TOMBSTONE_TYPE, *_ABOUT_ONE_ENTRY)
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class Entry:
    """One verified entry of the chain."""

    kind: str
    """The type of its statement: `statement.DRILL_TYPE` and so on."""
    seq: int
    digest: str
    """SHA-256 of the entry's line; the newest entry's is the chain's head."""
    key_id: str
    """The key in force after this entry."""
    files: Mapping[str, str]
    """Name and SHA-256 of the sealed files, or of the earlier entry that it is about."""
    predicate: Mapping[str, Any]
    folder: str | None
    """The sealed result folder, relative to the data home; None if it is not about a drill."""
    month: str
    """The drill's month, YYYY-MM-01; empty if it is not about a drill."""


@dataclass(frozen=True)
class Chain:
    """A chain whose every entry was verified. `content` is the file, byte for byte."""

    content: bytes
    entries: Sequence[Entry]

    @property
    def head(self) -> Entry:
        return self.entries[-1]

    @property
    def drills(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.folder is not None]

    @property
    def removed(self) -> dict[str, int]:
        """`folder/name` of each file that was removed on purpose, and the entry that says so."""
        stones = (entry for entry in self.entries if entry.kind == statement.TOMBSTONE_TYPE)
        return {name: stone.seq for stone in stones for name in stone.files}

    @property
    def key_ids(self) -> list[str]:
        """The ids of the keys that signed, oldest first."""
        return list(dict.fromkeys(entry.key_id for entry in self.entries))


@dataclass(frozen=True)
class _Tip:
    """What adding to a chain needs, remembered in `tip.json` of a chain that was verified whole.

    It stands for a chain of exactly these bytes, and spares this host to verify every signature
    again; `verify` never reads it.
    """

    size_bytes: int
    sha256: str
    seq: int
    digest: str
    key_id: str
    folders: Sequence[str]


def seal(home: Path, folder: Path, record: Mapping[str, Any]) -> Entry:
    """Sign what `folder` (below `home`) holds as the next entry of the chain.

    A folder that is sealed already keeps its entry. Raises EvidenceError if its files are not
    those any more, if the chain is broken, or if the key is not there; OSError if something
    cannot be read or written. The chain is then as it was.
    """
    name = folder.relative_to(home).as_posix()
    files = digests(folder, synced=True)
    for parent in folder.relative_to(home).parents:
        sync(home / parent)
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        store = private_directory(home, FOLDER_NAME)
        content, tip = _begin(store)
        key = keys.settle(store, tip.key_id)
        if name in tip.folders:
            entry = next(entry for entry in check_chain(content).drills if entry.folder == name)
            if entry.files == files:
                return entry
            raise EvidenceError(f"{folder} is sealed, and its files changed since")
        payload = statement.drill_statement(name, files, record, tip.seq + 1, tip.digest)
        return _append(store, content, tip, payload, [key])


def is_sealed(home: Path, folder: Path) -> bool:
    """Whether the chain has an entry for `folder`. Raises EvidenceError if the chain is broken."""
    path = home / FOLDER_NAME / CHAIN_NAME
    if not path.exists():
        return False
    name = folder.relative_to(home).as_posix()
    return any(entry.folder == name for entry in read_chain(home).drills)


def append_about(
    home: Path, kind: str, choose: Callable[[Chain], tuple[Entry, Mapping[str, Any]]]
) -> Entry:
    """As `append_entry`, about one earlier entry, which `choose` picks with the predicate."""

    def refer(chain: Chain) -> tuple[Mapping[str, str], Mapping[str, Any]]:
        about, predicate = choose(chain)
        reference = {"seq": about.seq, "sha256": about.digest}
        return _reference(about), {**predicate, "about": reference}

    return append_entry(home, kind, refer)


def append_entry(
    home: Path,
    kind: str,
    choose: Callable[[Chain], tuple[Mapping[str, str], Mapping[str, Any]]],
) -> Entry:
    """Sign an entry of `kind` with the subjects and the predicate that `choose` makes.

    What `choose` raises leaves the chain as it was; so does an entry that would break it.
    """
    if not (home / FOLDER_NAME / CHAIN_NAME).exists():
        raise EvidenceError(f"there is no evidence in {home}: nothing was sealed yet")
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        store = private_directory(home, FOLDER_NAME)
        content, tip = _begin(store)
        key = keys.settle(store, tip.key_id)
        chain = check_chain(content)
        subjects, predicate = choose(chain)
        payload = statement.encode(kind, subjects, predicate, tip.seq + 1, tip.digest)
        return _append(store, content, tip, payload, [key])


def _reference(entry: Entry) -> dict[str, str]:
    return {f"entry {entry.seq}": entry.digest}


def rotate_key(home: Path) -> Entry:
    """Put a new key in place of the one in force; both sign the entry that says so."""
    if not (home / FOLDER_NAME / CHAIN_NAME).exists():
        raise EvidenceError(f"there is no evidence in {home}: a first key comes with a first drill")
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        store = private_directory(home, FOLDER_NAME)
        content, tip = _begin(store)
        old = keys.settle(store, tip.key_id)
        new = keys.propose(store)
        payload = _key_payload(new.public_key(), tip.seq + 1, tip.digest)
        head = _append(store, content, tip, payload, [old, new])
        keys.settle(store, head.key_id)
        return head


def read_chain(home: Path) -> Chain:
    """The chain of a data home, every entry verified. Raises EvidenceError if it is broken."""
    return check_chain(read_lines(home / FOLDER_NAME / CHAIN_NAME))


def head_line(home: Path) -> str:
    """Number and SHA-256 of the newest entry, to be published; `none: …` says why there is none."""
    try:
        head = read_chain(home).head
    except FileNotFoundError:
        return "none: nothing is sealed yet"
    except (OSError, EvidenceError) as error:
        return f"none: {error}"
    return f"{head.seq} {head.digest}"


@lru_cache(maxsize=1)
def check_chain(content: bytes) -> Chain:
    """Verify every entry; raises EvidenceError with the number of the first wrong one.

    That proves that the holders of the chain's own keys wrote it. Whether these keys are to be
    trusted, and whether entries at the end are missing, the chain itself cannot tell. The same
    bytes in a row (a report asks for its tables, its drills and its head) are verified once.
    """
    *lines, rest = content.split(b"\n")
    if rest or not lines:
        raise EvidenceError("the chain is cut off: its last line has no end")
    entries: list[Entry] = []
    key: Ed25519PublicKey | None = None
    folders: set[str] = set()
    for line in lines:
        seq = len(entries) + 1
        try:
            prev = entries[-1].digest if entries else _BEFORE_THE_FIRST
            entry, key = _check_entry(line, seq, prev, key)
            if entry.kind in _ABOUT_ONE_ENTRY:
                _check_reference(entry, entries)
            elif entry.kind == statement.TOMBSTONE_TYPE:
                _check_tombstone(entry, entries)
            if entry.folder in folders:
                raise EvidenceError(f"{entry.folder} is sealed twice")
        except EvidenceError as error:
            raise EvidenceError(f"entry {seq} of the chain: {error}") from None
        if entry.folder is not None:
            folders.add(entry.folder)
        entries.append(entry)
    return Chain(content, tuple(entries))


def _check_entry(
    line: bytes, seq: int, prev: str, key: Ed25519PublicKey | None
) -> tuple[Entry, Ed25519PublicKey]:
    signed = envelope.parse(line)
    kind, files, predicate = statement.parse(signed.payload)
    if kind == statement.KEY_TYPE:
        introduced = keys.parse_public(str(predicate.get("public_key")), "public_key")
        signers = [introduced] if key is None else [key, introduced]
        key = introduced
    elif kind in _OF_ONE_KEY and key is not None:
        signers = [key]
    else:
        raise EvidenceError(f"a statement of type {kind!r} is not expected here")
    envelope.verify(signed, signers)
    if predicate.get("chain") != {"seq": seq, "prev": prev}:
        raise EvidenceError("it belongs to another place: entries were removed, added or moved")
    folder, month = _place(predicate) if kind == statement.DRILL_TYPE else (None, "")
    digest = hashlib.sha256(line).hexdigest()
    return Entry(kind, seq, digest, keys.key_id(key), files, predicate, folder, month), key


def _check_reference(entry: Entry, before: Sequence[Entry]) -> None:
    """An entry about an earlier one names it twice alike: as its subject and in the predicate."""
    try:
        earlier = before[entry.predicate["about"]["seq"] - 1]
        about = {"seq": earlier.seq, "sha256": earlier.digest}
        if entry.predicate["about"] == about and entry.files == _reference(earlier):
            return
    except (KeyError, TypeError, IndexError):
        pass
    raise EvidenceError("it is about an entry that is not before it")


def _check_tombstone(entry: Entry, before: Sequence[Entry]) -> None:
    """It may name sealed files of earlier drills, but none of the newest of each drill."""
    drills = {str(drill.folder): drill for drill in before if drill.folder is not None}
    newest = {str(drill.predicate["drill"].get("drill")): name for name, drill in drills.items()}
    for name, digest in entry.files.items():
        folder, _, file = name.rpartition("/")
        if folder not in drills or drills[folder].files.get(file) != digest:
            raise EvidenceError(f"it says that {name!r} was removed, which was not sealed before")
        if folder in newest.values():
            raise EvidenceError(f"it says that {name} was removed, which belongs to the newest")


def _place(predicate: Mapping[str, Any]) -> tuple[str, str]:
    try:
        folder, month = predicate["folder"], predicate["drill"]["month"]
        if _FOLDER.fullmatch(folder) and re.fullmatch(r"\d{4}-\d\d-01", month):
            return folder, month
    except (KeyError, TypeError):
        pass
    raise EvidenceError("it names no result folder or no month")


def _begin(store: Path) -> tuple[bytes, _Tip]:
    """The chain, begun with a first key if there is none, and its tip. Only under the lock."""
    path = store / CHAIN_NAME
    if path.exists():
        settle_append(path)
        content = path.read_bytes()
        return content, _tip(store, content)
    if (store / keys.PRIVATE_NAME).exists():
        raise EvidenceError(
            f"{path} is missing, though its key is there: put the chain back from a backup"
        )
    key = keys.propose(store)
    payload = _key_payload(key.public_key(), 1, _BEFORE_THE_FIRST)
    content = envelope.sign(payload, [key]) + b"\n"
    tip = _tip(store, content)
    replace_file(path, content, 0o644)
    return content, tip


def _tip(store: Path, content: bytes) -> _Tip:
    """From memory if that is of the same bytes; else by verifying the whole chain."""
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        tip = _Tip(**json.loads((store / _TIP_NAME).read_bytes()))
        if (tip.size_bytes, tip.sha256) == (len(content), sha256):
            return tip
    except (OSError, ValueError, TypeError):
        pass
    chain = check_chain(content)
    folders = [str(entry.folder) for entry in chain.drills]
    head = chain.head
    return _Tip(len(content), sha256, head.seq, head.digest, head.key_id, folders)


def _append(
    store: Path, content: bytes, tip: _Tip, payload: bytes, signers: Sequence[Ed25519PrivateKey]
) -> Entry:
    line = envelope.sign(payload, signers)
    entry, _ = _check_entry(line, tip.seq + 1, tip.digest, signers[0].public_key())
    append_line(store / CHAIN_NAME, line)
    whole = content + line + b"\n"
    folders = [*tip.folders, *([entry.folder] if entry.folder else [])]
    sha256 = hashlib.sha256(whole).hexdigest()
    new = _Tip(len(whole), sha256, entry.seq, entry.digest, entry.key_id, folders)
    # Only a memory: without it the next one verifies everything.
    with suppress(OSError), replacing(store / _TIP_NAME) as unfinished:
        unfinished.write_text(json.dumps(asdict(new)), encoding="ascii")
    return entry


def _key_payload(public: Ed25519PublicKey, seq: int, prev: str) -> bytes:
    return statement.key_statement(keys.public_pem(public), keys.key_id(public), seq, prev)
