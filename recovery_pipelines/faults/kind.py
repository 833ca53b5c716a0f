"""What our faults have in common: a kind is a choice of places and a way to damage one."""

import stat
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from recovery_pipelines.faults import edit
from recovery_pipelines.faults.base import Family, InjectedFault, Layer
from recovery_pipelines.sandbox import Tree


class Entry(NamedTuple):
    """One entry of the tree, as it was when the fault was asked for."""

    path: bytes
    mode: int
    size: int
    inode: tuple[int, int]
    links: int
    mtime_ns: int
    holds_damage: bool = False
    """Whether there is a path to avoid below this directory."""

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


@dataclass(frozen=True)
class Place:
    """Where a damage may be done, with what lies around it."""

    tree: Tree
    entry: Entry
    entries: list[Entry]
    rng: Random

    @property
    def path(self) -> bytes:
        return self.entry.path

    @property
    def size(self) -> int:
        return self.entry.size

    def siblings(self) -> list[Entry]:
        """The other files that have content, in an order chosen by the seed; at most a few."""
        others = [
            entry
            for entry in self.entries
            if entry.is_file and entry.size and entry.inode != self.entry.inode
        ]
        return self.rng.sample(others, min(len(others), 20))


@dataclass(frozen=True)
class Damage:
    """What was done at a place; `path` is given if another entry differs than the one chosen."""

    detail: str
    before: str
    after: str
    path: bytes | None = None
    also: tuple[bytes, ...] = ()
    """As in `InjectedFault`; other names of the same file need not be given."""


Chooser = Callable[[list[Entry], Random], Iterable[Entry]]
Damager = Callable[[Place], Damage | None]


@dataclass(frozen=True)
class Kind:
    """A `Fault` made of a chooser (places in the order to try) and a damager."""

    kind: str
    family: Family
    what: str
    """One line for the documentation."""
    caught_by: tuple[str, ...]
    choose: Chooser
    damage: Damager
    changes_data: bool = True

    def inject(
        self, tree: Tree, layer: Layer, rng: Random, avoid: Collection[bytes] = ()
    ) -> InjectedFault | None:
        """See `Fault.inject`."""
        return self.inject_among(clear_of(avoid, survey(tree)), tree, layer, rng)

    def inject_among(
        self, entries: list[Entry], tree: Tree, layer: Layer, rng: Random
    ) -> InjectedFault | None:
        """Do the damage once at one of these entries, or beside it."""
        for entry in self.choose(entries, rng):
            damage = self.damage(Place(tree, entry, entries, rng))
            if damage is not None:
                return InjectedFault(
                    kind=self.kind,
                    layer=layer,
                    family=self.family,
                    path=entry.path if damage.path is None else damage.path,
                    detail=damage.detail,
                    before=damage.before,
                    after=damage.after,
                    changes_data=self.changes_data,
                    caught_by=self.caught_by,
                    also=(*damage.also, *_other_names(entry, entries)),
                )
        return None


def _other_names(entry: Entry, entries: list[Entry]) -> list[bytes]:
    if not entry.is_file or entry.links == 1:
        return []
    return [e.path for e in entries if e.inode == entry.inode and e.path != entry.path]


def survey(tree: Tree) -> list[Entry]:
    """Every entry below the root, parents first."""
    return [
        Entry(
            path,
            found.st_mode,
            found.st_size,
            (found.st_dev, found.st_ino),
            found.st_nlink,
            found.st_mtime_ns,
        )
        for path, found in tree.walk()
    ]


def clear_of(avoid: Collection[bytes], entries: list[Entry]) -> list[Entry]:
    """The entries that are not at or below a path in `avoid`; those above are marked."""
    if not avoid:
        return entries
    damaged = set(avoid)
    holders = {directory for path in damaged for directory in edit.directories_above(path)}
    kept = []
    for entry in entries:
        if edit.parent(entry.path) in damaged:
            damaged.add(entry.path)
        if entry.path not in damaged:
            kept.append(entry._replace(holds_damage=True) if entry.path in holders else entry)
    return kept


def _shuffled(entries: list[Entry], rng: Random) -> list[Entry]:
    return rng.sample(entries, len(entries))


def files(entries: list[Entry], rng: Random) -> list[Entry]:
    """Files with content: half the time any file alike, half the time by size, as bit rot does.

    Files with several links come last: their damage is that of several entries.
    """
    filled = [entry for entry in entries if entry.is_file and entry.size]
    order = _shuffled(filled, rng)
    if order and rng.random() < 0.5:
        order.insert(0, rng.choices(filled, [entry.size for entry in filled])[0])
    return sorted(order, key=lambda entry: entry.links > 1)


def any_file(entries: list[Entry], rng: Random) -> list[Entry]:
    """Files, empty ones too."""
    return _shuffled([entry for entry in entries if entry.is_file], rng)


def linked_files(entries: list[Entry], rng: Random) -> list[Entry]:
    """Files with several links."""
    return _shuffled([entry for entry in entries if entry.is_file and entry.links > 1], rng)


def symlinks(entries: list[Entry], rng: Random) -> list[Entry]:
    """Symbolic links."""
    return _shuffled([entry for entry in entries if entry.is_symlink], rng)


def files_or_symlinks(entries: list[Entry], rng: Random) -> list[Entry]:
    """Files and symbolic links."""
    return _shuffled([entry for entry in entries if entry.is_file or entry.is_symlink], rng)


def directories(entries: list[Entry], rng: Random) -> list[Entry]:
    """Directories below the root."""
    return _shuffled([entry for entry in entries if entry.is_directory], rng)


def files_or_directories(entries: list[Entry], rng: Random) -> list[Entry]:
    """What has permissions of its own."""
    return _shuffled([entry for entry in entries if entry.is_file or entry.is_directory], rng)


def anything(entries: list[Entry], rng: Random) -> list[Entry]:
    """Files, directories and symbolic links."""
    chosen = [e for e in entries if e.is_file or e.is_directory or e.is_symlink]
    return _shuffled(chosen, rng)


def largest(entries: list[Entry], rng: Random) -> list[Entry]:
    """Files with content, the largest first."""
    filled = [entry for entry in entries if entry.is_file and entry.size]
    return sorted(filled, key=lambda entry: (-entry.size, entry.path))
