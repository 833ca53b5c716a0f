"""Ranges of paths: a tree cut into parts whose entries lie together, unlike the ranges of path_id.

Paths are ordered as a walk meets them: a directory, then all that is beneath it, then its next
sibling. So whatever lies between two paths is whole subtrees and a few siblings.
"""

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.manifest.schema import DIRECTORY
from recovery_pipelines.manifest.store import (
    Mask,
    Reader,
    fixed_array,
    group_bits,
    numbers,
    one_chunk,
    type_codes,
    valid_mask,
    write,
)

_SAMPLED_GROUPS = 4
_ENTRY_BYTES = 4096
"""What an entry costs beside its content, when parts are made alike."""


def order(path: bytes) -> bytes:
    """By this, paths sort as a walk meets them: no name holds a NUL."""
    return path.replace(b"/", b"\0")


def parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def ancestors(path: bytes) -> list[bytes]:
    """The directories above a path, the nearest first, the root (empty) last."""
    found = []
    while path:
        path = parent(path)
        found.append(path)
    return found


@dataclass(frozen=True)
class PathRange:
    """The paths from `start` up to but without `end`."""

    start: bytes = b""
    end: bytes | None = None
    """None: up to the last one."""

    def __contains__(self, path: bytes) -> bool:
        place = order(path)
        return order(self.start) <= place and (self.end is None or place < order(self.end))

    def mask(self, paths: pa.Array) -> Mask:
        """Which of an array of paths lie in it."""
        places = pc.replace_substring(paths, pattern=b"/", replacement=b"\0")
        inside = pc.greater_equal(places, pa.scalar(order(self.start), pa.binary()))
        if self.end is not None:
            before = pc.less(places, pa.scalar(order(self.end), pa.binary()))
            inside = pc.and_(inside, before)
        found: Mask = inside.to_numpy(zero_copy_only=False)
        return found


@dataclass(frozen=True)
class Part:
    """What a manifest holds in a range."""

    entries: int
    files: int
    """Entries other than directories."""
    size_bytes: int
    broken_above: tuple[bytes, ...]
    """Directories above the range that could not be listed completely."""
    linked: tuple[bytes, ...]
    """Entries inside that share an inode with another one, inside or outside."""
    linked_outside: tuple[bytes, ...]
    """Entries outside that share an inode with one inside."""


def cut(manifest: Path, count: int) -> list[PathRange]:
    """`count` ranges that hold everything, each about the same number of entries and bytes.

    They follow from the manifest alone. Only its first row groups are read: which entries these
    hold is decided by the hashes of their paths, so they are a fair sample. No range begins at a
    directory. Raises RecoveryError if there are too few entries.
    """
    reader = Reader(manifest)
    weights: dict[bytes, int] = {}
    for index in range(min(reader.groups, _SAMPLED_GROUPS)):
        table = reader.group(index)
        places = np.flatnonzero(type_codes(table["type"]) != DIRECTORY)
        rows = table.select(["path", "size"]).take(fixed_array(pa.int64(), places.astype("<i8")))
        columns = (column.to_pylist() for column in rows.columns)
        weights |= {path: _ENTRY_BYTES + (size or 0) for path, size in zip(*columns, strict=True)}
    paths = sorted(filter(_is_text, weights), key=order)
    if len(paths) < count:
        raise RecoveryError(
            f"{len(paths)} files in {manifest} are too few for {count} shards: lower `shards`"
        )
    totals = np.cumsum([weights[path] for path in paths])
    places = np.searchsorted(totals, totals[-1] * np.arange(1, count) / count, "right")
    for number in range(1, count):  # each at least one file, however large another one is
        before = int(places[number - 2]) if number > 1 else 0
        places[number - 1] = min(
            max(int(places[number - 1]), before + 1), len(paths) - count + number
        )
    edges = [b"", *(paths[place] for place in places), None]
    return [PathRange(start or b"", end) for start, end in pairwise(edges)]


def take_part(
    manifest: Path, paths: PathRange, output: Path, *, share: int = 1, like: Part | None = None
) -> Part:
    """Write the rows of a range as a manifest of its own, in bounded memory.

    `share`: in how many parts about as large as this one the manifest is cut. `like`: the part that
    this one is to be compared with; hard-link groups are then numbered by what that one knows, as a
    partly restored tree lacks members of them. All of the manifest is read, and its digest checked.
    Beside the row group at hand only hard links are held in memory.
    """
    reader = Reader(manifest)
    above = set(ancestors(paths.start))
    outside: dict[int, list[bytes]] = {}
    inside: dict[int, list[bytes]] = {}
    renumbered = _group_numbers(manifest, {*like.linked, *like.linked_outside}) if like else {}
    broken: list[bytes] = []
    counts = np.zeros(2, np.int64)

    def wanted(table: pa.Table) -> pa.Table:
        column = one_chunk(table["path"])
        mask = paths.mask(column)
        groups = numbers(table["hard_link_group"], "<u8")
        linked = np.flatnonzero((groups != 0) & valid_mask(table["hard_link_group"]))
        for place in linked.tolist():
            side = inside if mask[place] else outside
            side.setdefault(int(groups[place]), []).append(column[place].as_py())
        if renumbered and len(linked):
            table = _with_groups(table, linked, renumbered)
        codes = type_codes(table["type"])
        suspects = np.flatnonzero(
            valid_mask(table["error"]) & ~mask & ((codes == DIRECTORY) | (codes < 0))
        )
        broken.extend({column[place].as_py() for place in suspects.tolist()} & above)
        files = mask & (codes != DIRECTORY)
        sizes = np.where(valid_mask(table["size"]), numbers(table["size"], "<i8"), 0)
        counts[:] += int(files.sum()), int(sizes[files].sum())
        return table.take(fixed_array(pa.int64(), np.flatnonzero(mask).astype("<i8")))

    bits = min(reader.groups.bit_length() - 1, group_bits(reader.about["entries"] // share))
    each = reader.groups >> bits
    tables = map(wanted, reader.tables())
    summary = write(output, _joined(tables, each), reader.about)
    return Part(
        entries=summary.entries,
        files=int(counts[0]),
        size_bytes=int(counts[1]),
        broken_above=tuple(sorted(broken)),
        linked=tuple(sorted(path for members in inside.values() for path in members)),
        linked_outside=tuple(sorted(path for group in inside for path in outside.get(group, ()))),
    )


def _group_numbers(manifest: Path, known: Set[bytes]) -> dict[int, int]:
    """For each hard-link group the smallest path_id among its entries in `known`, if any."""
    smallest: dict[int, int] = {}
    for table in Reader(manifest).tables() if known else ():
        ids, groups = numbers(table["path_id"], "<u8"), numbers(table["hard_link_group"], "<u8")
        linked = (groups != 0) & valid_mask(table["hard_link_group"])
        paths = one_chunk(table["path"])
        for place in np.flatnonzero(linked).tolist():
            if paths[place].as_py() in known:
                group, path_id = int(groups[place]), int(ids[place])
                smallest[group] = min(path_id, smallest.get(group, path_id))
    return smallest


def _with_groups(
    table: pa.Table, linked: npt.NDArray[np.intp], renumbered: Mapping[int, int]
) -> pa.Table:
    groups = numbers(table["hard_link_group"], "<u8").copy()
    groups[linked] = [renumbered.get(group, group) for group in groups[linked].tolist()]
    index = table.schema.get_field_index("hard_link_group")
    column = fixed_array(pa.uint64(), groups, valid_mask(table["hard_link_group"]))
    return table.set_column(index, table.schema.field(index), column)


def sizes_of(manifest: Path, paths: Collection[bytes]) -> dict[bytes, int]:
    """Size in bytes of those of `paths` that the manifest knows and that are no directories."""
    if not paths:
        return {}
    wanted = pa.array(list(paths), pa.binary())
    found: dict[bytes, int] = {}
    for table in Reader(manifest).tables():
        is_wanted = pc.is_in(one_chunk(table["path"]), value_set=wanted)
        rows = table.select(["path", "size", "type"]).filter(is_wanted).to_pylist()
        found |= {row["path"]: row["size"] or 0 for row in rows if row["type"] != "directory"}
    return found


def _joined(tables: Iterator[pa.Table], each: int) -> Iterator[pa.Table]:
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if len(pending) == each:
            yield pa.concat_tables(pending).unify_dictionaries().combine_chunks()
            pending.clear()


def _is_text(path: bytes) -> bool:
    """Whether tools can name it in JSON."""
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True
