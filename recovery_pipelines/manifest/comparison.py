"""Compare two manifests part by part: what differs, and what cannot be decided.

Only what both sides know is compared. A row with an error leaves its unknown aspects undecided,
and so do entries that are absent beneath a directory that could not be listed completely.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.manifest.kinds import IGNORABLE, KINDS
from recovery_pipelines.manifest.schema import DIRECTORY, TYPES
from recovery_pipelines.manifest.store import (
    Mask,
    Reader,
    binary_parts,
    fixed_array,
    list_array,
    numbers,
    one_chunk,
    type_codes,
    valid_mask,
)

_FILE = [name for _, name in TYPES].index("file")
_ROOT_ID = np.uint64(xxhash.xxh3_64_intdigest(b""))
Ids = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Comparison:
    """What differs between an expected and a found manifest."""

    differences: pa.Table
    """Columns path (binary), kind, expected, found (strings); sorted by path and kind."""
    counts: dict[str, int]
    """Number of differences by kind; only kinds that occur."""
    entries: int
    """Rows of the expected manifest."""
    undecided: int
    """Entries about which something could not be told."""
    undecided_entries: pa.Table
    """Columns path (binary), reason (string); one row per undecided entry, sorted by path."""
    ignored: tuple[str, ...]
    """Aspects that were not compared."""
    verified: int
    """Entries other than the root that are present on both sides."""

    @property
    def identical(self) -> bool:
        """No difference, nothing undecided, and something was there to compare."""
        return self.differences.num_rows == 0 and self.undecided == 0 and self.verified > 0


def compare(expected: Path, found: Path, *, ignore: Collection[str] = ()) -> Comparison:
    """Compare manifest `found` with manifest `expected`.

    `ignore` names aspects that a target does not promise to keep (of IGNORABLE).
    Raises RecoveryError for a file that is no sound manifest or an aspect that does not exist.
    """
    readers = Reader(expected), Reader(found)
    findings = Findings(_ignorable(ignore))
    parts = max(reader.groups for reader in readers)
    _compare_parts(findings, readers, parts, range(parts))
    return findings.result(readers[0].about["entries"])


def compare_shard(
    expected: Path, found: Path, number: int, count: int, *, ignore: Collection[str] = ()
) -> "Findings":
    """The findings of shard `number` (from 0) of `count`, a power of two.

    A shard is a range of path_id; only its row groups are read, so it is guarded by the checksums
    of their pages, not by the digest of all rows. `Findings.merged` joins the shards.
    """
    if count < 1 or count & (count - 1) or not 0 <= number < count:
        raise RecoveryError(f"shard {number} of {count}: give 0 to count - 1 of a power of two")
    readers = Reader(expected), Reader(found)
    findings = Findings(_ignorable(ignore))
    parts = max(count, *(reader.groups for reader in readers))
    each = parts // count
    _compare_parts(findings, readers, parts, range(number * each, (number + 1) * each))
    return findings


def _compare_parts(
    findings: "Findings", readers: tuple[Reader, Reader], parts: int, chosen: range
) -> None:
    with ThreadPoolExecutor(2) as pool:
        left, right = (_Side(reader, parts, chosen, pool) for reader in readers)
        for part in chosen:
            findings.part(left.rows(part), right.rows(part))


def _ignorable(ignore: Collection[str]) -> frozenset[str]:
    if refused := sorted(set(ignore) - set(IGNORABLE)):
        raise RecoveryError(
            f"cannot ignore {', '.join(refused)}; what may be ignored: {', '.join(IGNORABLE)}"
        )
    return frozenset(ignore)


class _Rows:
    """Some rows of a manifest, their columns as numpy arrays."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.ids: Ids = numbers(table["path_id"], "<u8")
        self.types = type_codes(table["type"])

    def column(self, name: str, dtype: str) -> npt.NDArray[Any]:
        return numbers(self.table[name], dtype)

    def paths(self, places: npt.NDArray[np.intp]) -> list[bytes]:
        return _values(self.table["path"], places)


class _Side:
    """One manifest, read in `parts` parts of the range of path_id, one group ahead."""

    def __init__(self, reader: Reader, parts: int, chosen: range, pool: ThreadPoolExecutor) -> None:
        """Only the `chosen` parts are read."""
        self._ratio = parts // reader.groups
        self._shift = np.uint64(65 - parts.bit_length())
        groups = range(chosen.start // self._ratio, (chosen.stop - 1) // self._ratio + 1)
        self._tables = _read_ahead(reader, groups, pool)
        self._table: pa.Table | None = None

    def rows(self, part: int) -> _Rows:
        """The rows of a part; to be called for each part in order."""
        if part % self._ratio == 0 or self._table is None:
            self._table = next(self._tables)
        assert self._table is not None
        if self._ratio == 1:
            return _Rows(self._table)
        parts = numbers(self._table["path_id"], "<u8") >> self._shift
        start, end = np.searchsorted(parts, np.array([part, part + 1], np.uint64)).tolist()
        return _Rows(self._table.slice(start, end - start))


def _read_ahead(reader: Reader, groups: range, pool: ThreadPoolExecutor) -> Iterator[pa.Table]:
    ahead = pool.submit(reader.group, groups[0])
    for index in groups[1:]:
        table = ahead.result()
        ahead = pool.submit(reader.group, index)
        yield table
    yield ahead.result()


def _values(column: pa.ChunkedArray, places: npt.NDArray[np.intp]) -> list[Any]:
    taken = one_chunk(column).take(fixed_array(pa.int64(), places.astype("<i8")))
    values: list[Any] = taken.to_pylist()
    return values


@dataclass
class Findings:
    """What was found in the parts so far. `result` decides what needs all of them."""

    ignore: frozenset[str]
    compared: int = 0
    """Rows of the expected manifest in these parts."""
    paths: list[bytes] = field(default_factory=list)
    kinds: list[bytes] = field(default_factory=list)
    expected: list[bytes] = field(default_factory=list)
    found: list[bytes] = field(default_factory=list)
    undecided: dict[bytes, str] = field(default_factory=dict)
    one_sided: dict[str, list[tuple[bytes, str]]] = field(
        default_factory=lambda: {"missing": [], "unexpected": []}
    )
    broken: dict[str, list[bytes]] = field(
        default_factory=lambda: {"missing": [], "unexpected": []}
    )
    links: list[tuple[Ids, Ids, Ids, list[bytes]]] = field(default_factory=list)
    verified: int = 0

    def part(self, left: _Rows, right: _Rows) -> None:
        """Compare all rows of one part."""
        self.compared += len(left.ids)
        if len(left.ids) == len(right.ids) and np.array_equal(left.ids, right.ids):
            a = b = np.arange(len(left.ids))
        else:
            places = np.searchsorted(right.ids, left.ids)
            places[places == len(right.ids)] = 0
            common = (
                right.ids[places] == left.ids
                if len(right.ids)
                else np.zeros(len(left.ids), np.bool_)
            )
            a, b = np.flatnonzero(common), places[common]
            only_right = np.ones(len(right.ids), np.bool_)
            only_right[b] = False
            self._one_sided("missing", left, np.flatnonzero(~common))
            self._one_sided("unexpected", right, np.flatnonzero(only_right))
        self._errors(left, "unexpected", "expected")
        self._errors(right, "missing", "found")
        if not len(a):
            return
        pair = _Pair(left, right, a, b)
        pair.check_paths()
        self.verified += len(a) - int(_ROOT_ID in left.ids[a])
        for kind, differ, describe in pair.aspects():
            if kind not in self.ignore and differ.any():
                self._differ(kind, pair, np.flatnonzero(differ), describe)
        if "hard_link_group" not in self.ignore:
            self._collect_links(pair)

    def _one_sided(self, kind: str, rows: _Rows, places: npt.NDArray[np.intp]) -> None:
        names = [name for _, name in TYPES] + ["unknown"]
        types = rows.types[places].tolist()
        self.one_sided[kind] += zip(rows.paths(places), (names[t] for t in types), strict=True)

    def _errors(self, rows: _Rows, kind: str, side: str) -> None:
        """Note rows with errors; nothing beneath a broken directory can be called `kind`."""
        places = np.flatnonzero(valid_mask(rows.table["error"]))
        if not len(places):
            return
        types = rows.types[places].tolist()
        reasons = _values(rows.table["error"], places)
        for path, code, reason in zip(rows.paths(places), types, reasons, strict=True):
            self.undecided[path] = f"{side}: {reason}"
            if code in (DIRECTORY, -1):
                self.broken[kind].append(path)

    def _differ(
        self, kind: str, pair: "_Pair", places: npt.NDArray[np.intp], describe: "_Describe"
    ) -> None:
        a, b = pair.a[places], pair.b[places]
        self.paths += pair.left.paths(a)
        self.kinds += [kind.encode()] * len(places)
        self.expected += describe(pair.left, a)
        self.found += describe(pair.right, b)

    def _collect_links(self, pair: "_Pair") -> None:
        left, right = (
            rows.column("hard_link_group", "<u8")[places]
            for rows, places in ((pair.left, pair.a), (pair.right, pair.b))
        )
        linked = np.flatnonzero(((left != 0) | (right != 0)) & pair.known)
        if len(linked):
            ids = pair.left.ids[pair.a[linked]]
            paths = pair.left.paths(pair.a[linked])
            self.links.append((ids, left[linked], right[linked], paths))

    def _compare_links(self) -> None:
        """Compare the groups as partitions of the entries that both sides have."""
        if not self.links:
            return
        ids, left, right = (np.concatenate([part[n] for part in self.links]) for n in range(3))
        paths = [path for part in self.links for path in part[3]]
        (mine, my_sizes), (their, their_sizes) = _classes(ids, left), _classes(ids, right)
        _, shared_sizes = _classes(ids, mine * len(ids) + their + 1)
        differ = (my_sizes != their_sizes) | (my_sizes != shared_sizes)
        for place in np.flatnonzero(differ).tolist():
            self.paths.append(paths[place])
            self.kinds.append(b"hard_link_group")
            for texts, sizes in ((self.expected, my_sizes), (self.found, their_sizes)):
                size = sizes[place]
                texts.append(b"alone" if size == 1 else b"one of %d linked entries" % size)
            if my_sizes[place] == their_sizes[place]:
                self.found[-1] += b", but others"

    def _settle_one_sided(self) -> None:
        for kind, entries in self.one_sided.items():
            if kind in self.ignore:
                continue
            broken = set(self.broken[kind])
            for path, type_name in entries:
                if path in self.undecided and type_name == "unknown":
                    continue
                if broken and (above := _broken_above(path, broken)) is not None:
                    self.undecided[path] = (
                        f"{kind}, but {os.fsdecode(above) or 'the root'} was not listed completely"
                    )
                    continue
                self.paths.append(path)
                self.kinds.append(kind.encode())
                there, gone = type_name.encode(), b"absent"
                self.expected.append(there if kind == "missing" else gone)
                self.found.append(gone if kind == "missing" else there)

    @classmethod
    def merged(cls, shards: Sequence["Findings"]) -> "Findings":
        """The findings of all shards together; hard-link groups and directories may span them."""
        whole = cls(shards[0].ignore)
        for shard in shards:
            if shard.ignore != whole.ignore:
                raise RecoveryError("the shards did not ignore the same aspects")
            whole.compared += shard.compared
            whole.verified += shard.verified
            for name in ("paths", "kinds", "expected", "found", "links"):
                getattr(whole, name).extend(getattr(shard, name))
            whole.undecided |= shard.undecided
            for kind in whole.one_sided:
                whole.one_sided[kind] += shard.one_sided[kind]
                whole.broken[kind] += shard.broken[kind]
        return whole

    def result(self, entries: int) -> Comparison:
        """What differs between two manifests, the expected one of `entries` rows.

        Raises RecoveryError if not every row was compared.
        """
        if self.compared != entries:
            raise RecoveryError(
                f"{self.compared:,} of {entries:,} entries were compared: a shard is missing, was "
                "given twice, or is of other manifests"
            )
        self._compare_links()
        self._settle_one_sided()
        order = sorted(range(len(self.paths)), key=lambda n: (self.paths[n], self.kinds[n]))
        columns = {
            "path": [self.paths[n] for n in order],
            "kind": [self.kinds[n] for n in order],
            "expected": [self.expected[n] for n in order],
            "found": [self.found[n] for n in order],
        }
        counts = {kind: self.kinds.count(kind.encode()) for kind in KINDS}
        reasons = sorted(self.undecided.items())
        return Comparison(
            differences=_text_table(columns),
            counts={kind: count for kind, count in counts.items() if count},
            entries=entries,
            undecided=len(reasons),
            undecided_entries=_text_table(
                {
                    "path": [path for path, _ in reasons],
                    "reason": [reason.encode("utf-8", "backslashreplace") for _, reason in reasons],
                }
            ),
            ignored=tuple(sorted(self.ignore)),
            verified=self.verified,
        )


def _text_table(columns: dict[str, list[bytes]]) -> pa.Table:
    kinds = {name: pa.binary() if name == "path" else pa.string() for name in columns}
    return pa.table({name: list_array(values, kinds[name]) for name, values in columns.items()})


def _broken_above(path: bytes, broken: set[bytes]) -> bytes | None:
    while path:
        path = path.rpartition(b"/")[0]
        if path in broken:
            return path
    return None


def _classes(ids: Ids, groups: Ids) -> tuple[Ids, Ids]:
    """For each entry the number of its hard-link group, and how many entries are in that.

    Group 0 means alone. A group's number is the id of one of its entries, so it is never the id
    of an unlinked one.
    """
    _, classes, sizes = np.unique(
        np.where(groups == 0, ids, groups), return_inverse=True, return_counts=True
    )
    return classes.astype(np.uint64), sizes[classes].astype(np.uint64)


_Describe = Callable[[_Rows, npt.NDArray[np.intp]], list[bytes]]


class _Pair:
    """The rows that both sides have: row a[n] of `left` and row b[n] of `right` are one path."""

    def __init__(
        self, left: _Rows, right: _Rows, a: npt.NDArray[np.intp], b: npt.NDArray[np.intp]
    ) -> None:
        self.left, self.right, self.a, self.b = left, right, a, b
        self._whole = len(a) == len(left.ids) == len(right.ids)
        self.known: Mask = (left.types[a] >= 0) & (right.types[b] >= 0)

    def _both(self, name: str, dtype: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        left, right = self.left.column(name, dtype), self.right.column(name, dtype)
        return (left, right) if self._whole else (left[self.a], right[self.b])

    def _differ(self, name: str, dtype: str) -> Mask:
        left, right = self._both(name, dtype)
        differ: Mask = (left != right) & self.known
        return differ

    def _both_valid(self, name: str) -> Mask:
        left, right = valid_mask(self.left.table[name]), valid_mask(self.right.table[name])
        return left & right if self._whole else left[self.a] & right[self.b]

    def _digests_differ(self, name: str) -> Mask:
        dtype = np.dtype([("low", "<u8"), ("high", "<u8")])
        left, right = (
            numbers(rows.table[name], "V16").view(dtype) for rows in (self.left, self.right)
        )
        if not self._whole:
            left, right = left[self.a], right[self.b]
        differ: Mask = (left["low"] != right["low"]) | (left["high"] != right["high"])
        return differ

    def _binary_differs(self, name: str) -> Mask:
        arrays = [one_chunk(rows.table[name]) for rows in (self.left, self.right)]
        if not self._whole:
            for n, places in enumerate((self.a, self.b)):
                arrays[n] = arrays[n].take(fixed_array(pa.int64(), places.astype("<i8")))
        (offsets, blob), (other_offsets, other_blob) = map(binary_parts, arrays)
        differ: Mask = np.diff(offsets) != np.diff(other_offsets)
        if not differ.any() and np.array_equal(blob, other_blob):
            return differ
        values, others = (array.to_pylist() for array in arrays)
        return np.array([x != y for x, y in zip(values, others, strict=True)], np.bool_)

    def check_paths(self) -> None:
        """Two different paths with one 64-bit hash must not pass as one."""
        clash = np.flatnonzero(self._binary_differs("path"))
        if len(clash):
            path = self.left.paths(self.a[clash[:1]])[0]
            raise RecoveryError(
                f"the hash of the path {path!r} is that of another path in the other manifest; "
                "they cannot be compared, rename it"
            )

    def aspects(self) -> Iterable[tuple[str, Mask, "_Describe"]]:
        """(kind, which pairs differ in it, how to put a side in words)."""
        left_types, right_types = self.left.types[self.a], self.right.types[self.b]
        yield "type", (left_types != right_types) & self.known, _type_text
        files = (left_types == _FILE) & (right_types == _FILE)
        hashes = self._digests_differ("content_xxh3_128") & self._both_valid("content_xxh3_128")
        yield "content", files & (hashes | self._differ("size", "<i8")), _content_text
        yield "mode", self._differ("mode", "<u2"), _mode_text
        yield "owner", self._differ("uid", "<u4") | self._differ("gid", "<u4"), _owner_text
        yield "mtime", self._differ("mtime_ns", "<i8"), _mtime_text
        targets = self._binary_differs("link_target") & self._both_valid("link_target")
        yield "link_target", targets, _target_text
        xattrs = self._digests_differ("xattr_xxh3_128") & self._both_valid("xattr_xxh3_128")
        yield "xattr", xattrs, _xattr_text
        yield "device", self._differ("device", "<u8"), _device_text


def _type_text(rows: _Rows, places: npt.NDArray[np.intp]) -> list[bytes]:
    names = [name.encode() for _, name in TYPES]
    return [names[code] for code in rows.types[places].tolist()]


def _content_text(rows: _Rows, places: npt.NDArray[np.intp]) -> list[bytes]:
    sizes = rows.column("size", "<i8")[places].tolist()
    digests = _values(rows.table["content_xxh3_128"], places)
    return [
        b"%d bytes, xxh3 %s" % (size, digest.hex().encode() if digest else b"unknown")
        for size, digest in zip(sizes, digests, strict=True)
    ]


def _mode_text(rows: _Rows, places: npt.NDArray[np.intp]) -> list[bytes]:
    return [b"%04o" % mode for mode in rows.column("mode", "<u2")[places].tolist()]


def _owner_text(rows: _Rows, places: npt.NDArray[np.intp]) -> list[bytes]:
    uids = rows.column("uid", "<u4")[places].tolist()
    gids = rows.column("gid", "<u4")[places].tolist()
    return [b"%d:%d" % owner for owner in zip(uids, gids, strict=True)]


def _mtime_text(rows: _Rows, places: npt.NDArray[np.intp]) -> list[bytes]:
    return [b"%d ns" % time for time in rows.column("mtime_ns", "<i8")[places].tolist()]


def _target_text(rows: _Rows, places: npt.NDArray[np.intp]) -> list[bytes]:
    targets: Sequence[bytes] = _values(rows.table["link_target"], places)
    return [target.decode("utf-8", "backslashreplace").encode() for target in targets]


def _xattr_text(rows: _Rows, places: npt.NDArray[np.intp]) -> list[bytes]:
    digests: Sequence[bytes] = _values(rows.table["xattr_xxh3_128"], places)
    return [b"xxh3 " + digest.hex().encode() for digest in digests]


def _device_text(rows: _Rows, places: npt.NDArray[np.intp]) -> list[bytes]:
    numbers_found = rows.column("device", "<u8")[places].tolist()
    return [b"%d:%d" % (os.major(number), os.minor(number)) for number in numbers_found]
