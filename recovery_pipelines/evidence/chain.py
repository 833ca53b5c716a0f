"""The chain: `evidence/chain.jsonl` in the data home, one signed envelope a line.

Each entry names its number and the SHA-256 of the line before it. The first introduces the
signing key; a later one that introduces another is signed by both, the old key and the new. An
entry about an earlier entry names that by number and digest.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from recovery_pipelines.errors import EvidenceError
from recovery_pipelines.evidence import envelope, keys, statement
from recovery_pipelines.evidence.files import digests, replace_file, sync_directory
from recovery_pipelines.sandbox import exclusive
from recovery_pipelines.sandbox.lease import private_directory

FOLDER_NAME = "evidence"
CHAIN_NAME = "chain.jsonl"
_BEFORE_THE_FIRST = "0" * 64
_LOCK = "evidence"
_LOCK_TIMEOUT_SECONDS = 120.0
_OF_ONE_KEY = (statement.DRILL_TYPE, statement.SIGN_OFF_TYPE)
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
    def key_ids(self) -> list[str]:
        """The ids of the keys that signed, oldest first."""
        return list(dict.fromkeys(entry.key_id for entry in self.entries))


def seal(home: Path, folder: Path, record: Mapping[str, Any]) -> Entry:
    """Sign what `folder` (below `home`) holds as the next entry of the chain.

    A folder that is sealed already keeps its entry. Raises EvidenceError if its files are not
    those any more, if the chain is broken, or if the key is not there; OSError if something
    cannot be read or written. The chain is then as it was.
    """
    name = folder.relative_to(home).as_posix()
    files = digests(folder, synced=True)
    for parent in folder.relative_to(home).parents:
        sync_directory(home / parent)
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        store = private_directory(home, FOLDER_NAME)
        chain = _begin(store)
        key = keys.settle(store, chain.head.key_id)
        for entry in chain.drills:
            if entry.folder == name:
                if entry.files == files:
                    return entry
                raise EvidenceError(f"{folder} is sealed, and its files changed since")
        place = len(chain.entries) + 1, chain.head.digest
        payload = statement.drill_statement(name, files, record, *place)
        return _append(store, chain.content, payload, [key]).head


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
    """Sign an entry of `kind` about an earlier one, which `choose` picks with the predicate.

    What `choose` raises leaves the chain as it was.
    """
    if not (home / FOLDER_NAME / CHAIN_NAME).exists():
        raise EvidenceError(f"there is no evidence in {home}: nothing was sealed yet")
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        store = private_directory(home, FOLDER_NAME)
        chain = _begin(store)
        key = keys.settle(store, chain.head.key_id)
        about, predicate = choose(chain)
        predicate = {**predicate, "about": {"seq": about.seq, "sha256": about.digest}}
        place = len(chain.entries) + 1, chain.head.digest
        payload = statement.encode(kind, _reference(about), predicate, *place)
        return _append(store, chain.content, payload, [key]).head


def _reference(entry: Entry) -> dict[str, str]:
    return {f"entry {entry.seq}": entry.digest}


def rotate_key(home: Path) -> Entry:
    """Put a new key in place of the one in force; both sign the entry that says so."""
    if not (home / FOLDER_NAME / CHAIN_NAME).exists():
        raise EvidenceError(f"there is no evidence in {home}: a first key comes with a first drill")
    with exclusive(home, _LOCK, _LOCK_TIMEOUT_SECONDS):
        store = private_directory(home, FOLDER_NAME)
        chain = _begin(store)
        old = keys.settle(store, chain.head.key_id)
        new = keys.propose(store)
        payload = _key_payload(new.public_key(), len(chain.entries) + 1, chain.head.digest)
        head = _append(store, chain.content, payload, [old, new]).head
        keys.settle(store, head.key_id)
        return head


def read_chain(home: Path) -> Chain:
    """The chain of a data home, every entry verified. Raises EvidenceError if it is broken."""
    return check_chain((home / FOLDER_NAME / CHAIN_NAME).read_bytes())


def check_chain(content: bytes) -> Chain:
    """Verify every entry; raises EvidenceError with the number of the first wrong one.

    That proves that the holders of the chain's own keys wrote it. Whether these keys are to be
    trusted, and whether entries at the end are missing, the chain itself cannot tell.
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
            entry, key = _check_entry(line, entries, key)
            if entry.folder in folders:
                raise EvidenceError(f"{entry.folder} is sealed twice")
        except EvidenceError as error:
            raise EvidenceError(f"entry {seq} of the chain: {error}") from None
        if entry.folder is not None:
            folders.add(entry.folder)
        entries.append(entry)
    return Chain(content, entries)


def _check_entry(
    line: bytes, before: Sequence[Entry], key: Ed25519PublicKey | None
) -> tuple[Entry, Ed25519PublicKey]:
    seq, prev = len(before) + 1, before[-1].digest if before else _BEFORE_THE_FIRST
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
    if kind == statement.SIGN_OFF_TYPE:
        _check_reference(files, predicate, before)
    digest = hashlib.sha256(line).hexdigest()
    return Entry(kind, seq, digest, keys.key_id(key), files, predicate, folder, month), key


def _check_reference(
    files: Mapping[str, str], predicate: Mapping[str, Any], before: Sequence[Entry]
) -> None:
    """An entry about an earlier one names it twice alike: as its subject and in the predicate."""
    try:
        entry = before[predicate["about"]["seq"] - 1]
        about = {"seq": entry.seq, "sha256": entry.digest}
        if predicate["about"] == about and files == _reference(entry):
            return
    except (KeyError, TypeError, IndexError):
        pass
    raise EvidenceError("it is about an entry that is not before it")


def _place(predicate: Mapping[str, Any]) -> tuple[str, str]:
    try:
        folder, month = predicate["folder"], predicate["drill"]["month"]
        if _FOLDER.fullmatch(folder) and re.fullmatch(r"\d{4}-\d\d-01", month):
            return folder, month
    except (KeyError, TypeError):
        pass
    raise EvidenceError("it names no result folder or no month")


def _begin(store: Path) -> Chain:
    """The chain, begun with a first key if there is none. Only under the lock."""
    path = store / CHAIN_NAME
    if path.exists():
        return check_chain(path.read_bytes())
    if (store / keys.PRIVATE_NAME).exists():
        raise EvidenceError(
            f"{path} is missing, though its key is there: put the chain back from a backup"
        )
    key = keys.propose(store)
    return _append(store, b"", _key_payload(key.public_key(), 1, _BEFORE_THE_FIRST), [key])


def _append(
    store: Path, content: bytes, payload: bytes, signers: Sequence[Ed25519PrivateKey]
) -> Chain:
    chain = check_chain(content + envelope.sign(payload, signers) + b"\n")
    replace_file(store / CHAIN_NAME, chain.content, 0o644)
    return chain


def _key_payload(public: Ed25519PublicKey, seq: int, prev: str) -> bytes:
    return statement.key_statement(keys.public_pem(public), keys.key_id(public), seq, prev)
