"""Damage to an engine's repository: on its largest file, its newest file, or its index.

The newest file is the last snapshot (or archive) that the engine wrote.
"""

from random import Random

from recovery_pipelines.faults import content, kind, ransomware, structure
from recovery_pipelines.faults.base import Family
from recovery_pipelines.faults.kind import Chooser, Damage, Damager, Entry, Kind, Place

_TAIL_BYTES = 2048
_INDEX_PREFIXES = (b"index", b"manifest")
_AIDS = (*_INDEX_PREFIXES, b"hints", b"integrity", b"nonce")
"""Names of what an engine can rebuild: such files are newer than the backup that they go with."""


def _index_files(entries: list[Entry], rng: Random) -> list[Entry]:
    """Files named index or manifest, or in a directory that is."""
    return [
        entry
        for entry in entries
        if entry.is_file and any(p.startswith(_INDEX_PREFIXES) for p in entry.path.split(b"/"))
    ]


def _newest_backup(entries: list[Entry], rng: Random) -> list[Entry]:
    """Files that hold backups, the newest first.

    Clocks tick slowly: of restic's files written in one tick the snapshot, last by name, is newest.
    """
    files = [
        entry
        for entry in entries
        if entry.is_file
        and entry.size
        and not any(part.startswith(_AIDS) for part in entry.path.split(b"/"))
    ]
    return sorted(files, key=lambda entry: (entry.mtime_ns, entry.path), reverse=True)


def delete_index(place: Place) -> Damage:
    """All index files, not just the chosen one."""
    index = _index_files(place.entries, place.rng)
    for entry in index:
        structure.delete(Place(place.tree, entry, place.entries, place.rng))
    return Damage("all index files deleted", f"{len(index)} files", "absent")


def torn_tail(place: Place) -> Damage | None:
    """The last 2 KiB were never written."""
    length = min(place.size, _TAIL_BYTES)
    return content.replace(place, place.size - length, bytes(length), f"{length} bytes zeroed")


def unreadable(place: Place) -> Damage | None:
    """Mode 000. Root reads it all the same."""
    before = oct(place.entry.mode & 0o7777)
    place.tree.chmod(place.path, 0)
    return Damage("mode 000", before, oct(place.tree.stat(place.path).st_mode & 0o7777))


def _on(choose: Chooser, name: str, what: str, damage: Damager, family: Family) -> Kind:
    return Kind(name, family, what, _CAUGHT_BY, choose, damage)


_CAUGHT_BY = ("all_files_recovered", "checksums_match", "directory_structure_intact")
_CONTENT, _STRUCTURE = Family.CONTENT, Family.STRUCTURE
_LARGEST, _NEWEST = kind.largest, _newest_backup

KINDS = (
    _on(_LARGEST, "bit_flip", "one bit of the largest file", content.bit_flip, _CONTENT),
    _on(
        _LARGEST,
        "zero_4k",
        "4 KiB of the largest file become zeros",
        content.change_block(content.zeros, "zeroed"),
        _CONTENT,
    ),
    _on(
        _LARGEST,
        "hole_8k",
        "8 KiB of the largest file become a hole",
        content.hole_punch,
        _CONTENT,
    ),
    _on(_LARGEST, "torn_tail", "the last 2 KiB become zeros", torn_tail, _CONTENT),
    _on(
        _LARGEST,
        "truncate",
        "the largest file is cut to two thirds",
        content.resize(lambda size, rng: size * 2 // 3),
        _CONTENT,
    ),
    _on(
        _LARGEST,
        "truncate_100_bytes",
        "the largest file loses its last 100 bytes",
        content.resize(lambda size, rng: size - 100),
        _CONTENT,
    ),
    _on(
        _LARGEST,
        "append_garbage",
        "random bytes at the end of the largest file",
        content.append_garbage,
        _CONTENT,
    ),
    _on(
        _LARGEST,
        "swap_two_blocks",
        "two 4 KiB blocks of the largest file change places",
        content.block_swap,
        _CONTENT,
    ),
    _on(
        _LARGEST,
        "misdirected_4k",
        "4 KiB of another file land in the largest",
        content.misdirected_write,
        _CONTENT,
    ),
    _on(_LARGEST, "delete_largest", "the largest file is gone", structure.delete, _STRUCTURE),
    _on(
        _LARGEST,
        "rename_bak",
        "the largest file is renamed to *.bak",
        structure.rename(b".bak"),
        _STRUCTURE,
    ),
    _on(
        _LARGEST,
        "overwritten_by_sibling",
        "the largest file gets another file's content",
        content.overwritten_by_sibling,
        _CONTENT,
    ),
    _on(
        _LARGEST,
        "encrypt_and_rename",
        "the largest file is encrypted and renamed",
        ransomware.encrypt_and_rename,
        Family.RANSOMWARE,
    ),
    _on(
        _NEWEST,
        "newest_bit_flip",
        "one bit of the newest file that holds a backup",
        content.bit_flip,
        _CONTENT,
    ),
    _on(
        _NEWEST,
        "newest_deleted",
        "the newest file that holds a backup is gone",
        structure.delete,
        _STRUCTURE,
    ),
    _on(
        _index_files,
        "index_deleted",
        "all index or manifest files are gone",
        delete_index,
        _STRUCTURE,
    ),
    _on(_LARGEST, "chmod_000", "nobody may read the largest file", unreadable, Family.METADATA),
)
