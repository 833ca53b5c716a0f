"""Manifest files: writing them in bounded memory, and reading them back with every check."""

import json
import os
import socket
import tempfile
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import sync
from recovery_pipelines.manifest.schema import METADATA_KEY, SCHEMA, SCHEMA_VERSION, TYPES
from recovery_pipelines.manifest.summary import Summary
from recovery_pipelines.manifest.worker import CONTENT_KNOWN, FIELDS, STAT_KNOWN, XATTR_KNOWN

_SPILL_ROWS = 128 << 10
_SPILL_BYTES = 64 << 20
_SPILL_BITS = 6
_GROUP_ROWS = 64 << 10
_CODES = {"Q": "<u8", "q": "<i8", "I": "<u4", "16s": "V16"}
_DTYPE = np.dtype([(name, _CODES[code]) for name, code in FIELDS])

Mask = npt.NDArray[np.bool_]
Reply = tuple[bytes, bytes, bytes, bytes]
"""Rows from a worker: records, then the paths, link targets and errors of all of them."""


# Arrow arrays are built from buffers: pa.array() would import pandas, which takes longer than
# capturing a small tree.


def _bitmap(valid: Mask | None) -> pa.Buffer | None:
    if valid is None or valid.all():
        return None
    return pa.py_buffer(np.packbits(valid, bitorder="little").tobytes())


def fixed_array(kind: pa.DataType, values: npt.NDArray[Any], valid: Mask | None = None) -> pa.Array:
    """An Arrow array of fixed-width `values`; null where not `valid`."""
    data = pa.py_buffer(np.ascontiguousarray(values).tobytes())
    return pa.Array.from_buffers(kind, len(values), [_bitmap(valid), data])


def bytes_array(
    blob: bytes, lengths: npt.NDArray[Any], kind: pa.DataType, valid: Mask | None = None
) -> pa.Array:
    """An Arrow array of byte strings (or strings) that lie one after the other in `blob`."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    buffers = [_bitmap(valid), pa.py_buffer(offsets.tobytes()), pa.py_buffer(blob)]
    return pa.Array.from_buffers(kind, len(lengths), buffers)


def list_array(values: Sequence[bytes], kind: pa.DataType) -> pa.Array:
    """An Arrow array of byte strings (or strings, given as UTF-8)."""
    lengths = np.fromiter(map(len, values), np.int32, len(values))
    return bytes_array(b"".join(values), lengths, kind)


_TYPE_NAMES = [name.encode() for _, name in TYPES]
_TYPE_CODE = np.full(16, -1, np.int8)
for _code, (_bits, _) in enumerate(TYPES):
    _TYPE_CODE[_bits >> 12] = _code


def _table(replies: list[Reply]) -> tuple[pa.Table, npt.NDArray[Any]]:
    """The rows of worker replies as a table of SCHEMA (no hard-link groups yet), sorted by
    path_id, and (device, inode, path_id) of all rows with more than one hard link."""
    unsorted = np.frombuffer(b"".join(reply[0] for reply in replies), _DTYPE)
    order = np.argsort(unsorted["path_id"])
    records = unsorted[order]
    known = records["known"]
    has_stat = known & STAT_KNOWN != 0
    types = _TYPE_CODE[records["mode"] >> 12 & 15]

    def blobs(part: int, kind: pa.DataType) -> pa.Array:
        lengths = unsorted[("path_length", "target_length", "error_length")[part - 1]]
        blob = b"".join(reply[part] for reply in replies)
        if not blob and part != 1:  # the root alone has an empty path, not none
            return pa.nulls(len(lengths), kind)
        valid = None if part == 1 else lengths > 0
        return bytes_array(blob, lengths, kind, valid).take(fixed_array(pa.int64(), order))

    columns = {
        "path": blobs(1, pa.binary()),
        "type": type_array(types, has_stat & (types >= 0)),
        "mode": fixed_array(pa.uint16(), (records["mode"] & 0o7777).astype("<u2"), has_stat),
        "link_target": blobs(2, pa.binary()),
        "hard_link_group": fixed_array(pa.uint64(), np.zeros(len(records), "<u8"), has_stat),
        "xattr_xxh3_128": fixed_array(pa.binary(16), records["xattr"], known & XATTR_KNOWN != 0),
        "content_xxh3_128": fixed_array(
            pa.binary(16), records["content"], known & CONTENT_KNOWN != 0
        ),
        "error": blobs(3, pa.string()),
    }
    for name in ("path_id", "size", "uid", "gid", "mtime_ns", "device"):
        valid = None if name == "path_id" else has_stat
        columns[name] = fixed_array(SCHEMA.field(name).type, records[name], valid)
    linked = records[(records["links"] > 1) & (types != 1) & has_stat]
    return (
        pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA),
        np.stack([linked["dev"], linked["ino"], linked["path_id"]], axis=1),
    )


def type_array(codes: npt.NDArray[np.int8], valid: Mask) -> pa.Array:
    """The dictionary array of the type codes (positions in TYPES)."""
    indices = fixed_array(pa.int8(), np.where(valid, codes, 0).astype(np.int8), valid)
    return pa.DictionaryArray.from_arrays(indices, list_array(_TYPE_NAMES, pa.string()))


def numbers(column: pa.ChunkedArray | pa.Array, dtype: str) -> npt.NDArray[Any]:
    """The values of a fixed-width column without copying; null places hold anything."""
    array = one_chunk(column)
    data = array.buffers()[1]
    if data is None:
        return np.zeros(len(array), dtype)
    return np.frombuffer(data, dtype)[array.offset : array.offset + len(array)]


def one_chunk(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array."""
    if isinstance(column, pa.Array):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def valid_mask(column: pa.ChunkedArray | pa.Array) -> Mask:
    """True where a column has a value."""
    array = one_chunk(column)
    if array.null_count == 0:
        return np.ones(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(array.buffers()[0], np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].astype(np.bool_)


class _Links:
    """Hard-link groups: entries of one inode share the smallest path_id among them."""

    def __init__(self, linked: list[npt.NDArray[Any]]) -> None:
        rows = np.concatenate([np.empty((0, 3), "<u8"), *linked])
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        new = np.ones(len(rows), np.bool_)
        new[1:] = (rows[1:, :2] != rows[:-1, :2]).any(axis=1)
        starts = np.flatnonzero(new)
        sizes = np.diff(np.append(starts, len(rows)))
        groups = np.repeat(np.where(sizes > 1, rows[starts, 2], 0), sizes)
        order = np.argsort(rows[:, 2])
        self._path_ids, self._groups = rows[order, 2], groups[order]

    def fill(self, table: pa.Table) -> pa.Table:
        """Set the column hard_link_group of a table that is sorted by path_id."""
        path_ids = numbers(table["path_id"], "<u8")
        if not len(self._path_ids) or not len(path_ids):
            return table
        low = np.searchsorted(self._path_ids, path_ids[0], "left")
        high = np.searchsorted(self._path_ids, path_ids[-1], "right")
        mine = slice(int(low), int(high))
        groups = np.zeros(len(path_ids), "<u8")
        places = np.searchsorted(path_ids, self._path_ids[mine])
        groups[places] = self._groups[mine]
        index = SCHEMA.get_field_index("hard_link_group")
        column = fixed_array(pa.uint64(), groups, valid_mask(table["hard_link_group"]))
        return table.set_column(index, SCHEMA.field(index), column)


def _no_duplicates(table: pa.Table) -> pa.Table:
    """A directory that changes while it is listed can show an entry twice: keep one, marked."""
    path_ids = numbers(table["path_id"], "<u8")
    twice = np.flatnonzero(path_ids[1:] == path_ids[:-1])
    if not len(twice):
        return table
    paths = table["path"]
    for first in twice.tolist():
        if paths[first].as_py() != paths[first + 1].as_py():
            raise RecoveryError(
                f"the paths {paths[first].as_py()!r} and {paths[first + 1].as_py()!r} have the "
                "same 64-bit hash and cannot be told apart in a manifest; rename one of them"
            )
    errors = table["error"].to_pylist()
    for first in twice.tolist():
        errors[first] = errors[first + 1] = "listed twice: the directory changed meanwhile"
    index = SCHEMA.get_field_index("error")
    table = table.set_column(index, SCHEMA.field(index), pa.array(errors, pa.string()))
    keep = np.ones(len(path_ids), np.bool_)
    keep[twice + 1] = False
    return table.take(fixed_array(pa.int64(), np.flatnonzero(keep)))


class _Digest:
    """xxh3_128 over all rows, column by column, so that row groups do not matter."""

    def __init__(self) -> None:
        # Per column: which values there are, their lengths, the values.
        self._hashers = {f.name: [xxhash.xxh3_128() for _ in range(3)] for f in SCHEMA}

    def update(self, table: pa.Table) -> None:
        for field in SCHEMA:
            validity, lengths, values = self._hashers[field.name]
            array = one_chunk(table[field.name])
            valid = valid_mask(array)
            validity.update(valid.tobytes())
            if pa.types.is_dictionary(field.type):
                values.update(type_codes(array).tobytes())
            elif pa.types.is_binary(field.type) or pa.types.is_string(field.type):
                offsets, blob = binary_parts(array)
                lengths.update(np.diff(offsets).tobytes())
                values.update(blob.data)
            else:
                fixed = numbers(array, f"V{field.type.bit_width // 8}")
                values.update((fixed if array.null_count == 0 else fixed[valid]).tobytes())

    def hexdigest(self) -> str:
        parts = (one.digest() for column in self._hashers.values() for one in column)
        return str(xxhash.xxh3_128_hexdigest(b"".join(parts)))


def binary_parts(array: pa.Array) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
    """The offsets (length n + 1, from 0) and the bytes of a binary or string array."""
    buffers = array.buffers()
    offsets = np.frombuffer(buffers[1], np.int32)[array.offset : array.offset + len(array) + 1]
    if buffers[2] is None or not len(array):
        return np.zeros(len(array) + 1, np.int32), np.zeros(0, np.uint8)
    blob = np.frombuffer(buffers[2], np.uint8)[int(offsets[0]) : int(offsets[-1])]
    return offsets - offsets[0], blob


def type_codes(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[np.int8]:
    """The positions in TYPES of a dictionary-encoded type column; -1 where it is null."""
    array = one_chunk(column)
    names = [name for _, name in TYPES]
    lookup = np.array([names.index(name) for name in array.dictionary.to_pylist()] + [-1], np.int8)
    indices = array.indices
    codes = numbers(indices, "<i1" if indices.type == pa.int8() else "<i4")
    return lookup[np.where(valid_mask(indices), codes, len(lookup) - 1)]


class Writer:
    """Collects rows in bounded memory and writes them as one manifest file."""

    def __init__(self, output: Path, tree: Path, captured_at: datetime) -> None:
        self._output = output
        self._about = {
            "schema_version": SCHEMA_VERSION,
            "root": os.fsdecode(os.path.abspath(tree)),  # noqa: PTH100
            "captured_at": captured_at.isoformat(),
            "host": socket.gethostname(),
            "tool_version": version("recovery_pipelines"),
            "mount_points": _mount_points(tree),
        }
        self._replies: list[Reply] = []
        self._pending_rows = self._pending_bytes = 0
        self._linked: list[npt.NDArray[Any]] = []
        self._spills: list[BinaryIO] = []
        self._rows = 0

    def add(self, records: bytes, paths: bytes, targets: bytes, errors: bytes) -> None:
        """Take the rows of one worker reply."""
        self._replies.append((records, paths, targets, errors))
        self._pending_rows += len(records) // _DTYPE.itemsize
        self._pending_bytes += len(paths) + len(targets) + len(errors)
        if self._pending_rows >= _SPILL_ROWS or self._pending_bytes >= _SPILL_BYTES:
            self._spill()

    def _sorted_rows(self) -> pa.Table:
        table, linked = _table(self._replies)
        self._replies.clear()
        self._pending_rows = self._pending_bytes = 0
        self._linked.append(linked)
        self._rows += table.num_rows
        return table

    def _spill(self) -> None:
        """Move the rows to disk, into one anonymous file per range of path_id."""
        table = self._sorted_rows()
        if not self._spills:
            place = self._output.parent
            for _ in range(1 << _SPILL_BITS):
                self._spills.append(tempfile.TemporaryFile(dir=place))  # noqa: SIM115
        for file, part in zip(self._spills, _split(table, _SPILL_BITS, 0), strict=True):
            with pa.ipc.new_stream(pa.PythonFile(file, "w"), SCHEMA) as stream:
                stream.write_table(part)

    def finish(self) -> Summary:
        """Write the file, make it durable, and put it in place."""
        if self._spills:
            if self._replies:
                self._spill()
            tables = self._spilled(max(_SPILL_BITS, group_bits(self._rows)))
        else:
            table = self._sorted_rows()
            tables = _split(table, group_bits(self._rows), 0)
        links = _Links(self._linked)
        finished = (links.fill(_no_duplicates(table)) for table in tables)
        return write(self._output, finished, self._about)

    def _spilled(self, bits: int) -> Iterator[pa.Table]:
        for bucket, file in enumerate(self._spills):
            file.seek(0)
            parts = []
            while file.read(1):
                file.seek(-1, os.SEEK_CUR)
                parts.append(pa.ipc.open_stream(pa.PythonFile(file, "r")).read_all())
            file.close()
            table = pa.concat_tables(parts).combine_chunks()
            order = np.argsort(numbers(table["path_id"], "<u8"))
            table = table.take(fixed_array(pa.int64(), order.astype("<i8")))
            yield from _split(table, bits, _SPILL_BITS, bucket)

    def close(self) -> None:
        """Free what is still held."""
        for file in self._spills:
            file.close()


def _mount_points(tree: Path) -> list[str]:
    """Mounts beneath the tree (their entries are captured like all others)."""
    root = os.fsencode(os.path.realpath(tree)).rstrip(b"/") + b"/"
    found = set()
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        path = line.split()[4]
        for escape, character in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n")):
            path = path.replace(escape, character)
        path = path.replace(b"\\134", b"\\")
        if path.startswith(root) and path != root:
            found.add(os.fsdecode(path[len(root) :]))
    return sorted(found)


def group_bits(rows: int) -> int:
    return max(0, (max(rows, 1) - 1) // _GROUP_ROWS).bit_length()


def _split(table: pa.Table, bits: int, outer_bits: int, outer: int = 0) -> Iterator[pa.Table]:
    """Cut a sorted table, which spans part `outer` of 2^outer_bits, into parts of 2^bits."""
    path_ids = numbers(table["path_id"], "<u8")
    count = 1 << (bits - outer_bits)
    first = outer * count
    edges = [((first + part) << (64 - bits)) for part in range(1, count)]
    cuts = [0, *np.searchsorted(path_ids, np.array(edges, "<u8")).tolist(), table.num_rows]
    for start, end in pairwise(cuts):
        yield table.slice(start, end - start)


def write(output: Path, tables: Iterator[pa.Table], about: dict[str, Any]) -> Summary:
    digest = _Digest()
    entries = files = size = errors = 0
    handle, name = tempfile.mkstemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), 0o644 & ~_umask())
            writer = pq.ParquetWriter(
                file,
                SCHEMA,
                compression="zstd",
                compression_level=1,
                use_dictionary=["type", "mode", "uid", "gid", "xattr_xxh3_128", "error"],
                write_statistics=["path_id"],
                write_page_checksum=True,
            )
            for table in tables:
                writer.write_table(table, row_group_size=max(1, table.num_rows))
                digest.update(table)
                entries += table.num_rows
                is_file = type_codes(table["type"]) == 0
                files += int(is_file.sum())
                size += int(numbers(table["size"], "<i8")[is_file].sum())
                errors += int(valid_mask(table["error"]).sum())
            about = about | {
                "complete": errors == 0,
                "entries": entries,
                "files": files,
                "bytes": size,
                "errors": errors,
                "digest": digest.hexdigest(),
            }
            text = json.dumps(about).encode()
            checksum = xxhash.xxh3_128_hexdigest(text).encode()
            writer.add_key_value_metadata({METADATA_KEY: checksum + text})
            writer.close()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(output)
        sync(output.parent)
    finally:
        temporary.unlink(missing_ok=True)
    return Summary(entries, files, size, errors, about["digest"])


def _umask() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return 0o077


class Reader:
    """An open manifest file; whatever is wrong with it is a RecoveryError.

    If its groups are read in order, each once, the digest of all rows is checked with the last.
    """

    def __init__(self, manifest: Path) -> None:
        self.manifest = manifest
        try:
            self._file = pq.ParquetFile(manifest, page_checksum_verification=True)
            about = (self._file.metadata.metadata or {})[METADATA_KEY]
            is_ours = self._file.schema_arrow.remove_metadata() == SCHEMA
        except KeyError:
            is_ours = False
        except (OSError, ValueError, pa.ArrowException) as problem:
            raise self._bad(str(problem)) from None
        if not is_ours:
            raise self._bad("it is a Parquet file, but not a manifest of this tool and version")
        checksum, text = about[:32], about[32:]
        if xxhash.xxh3_128_hexdigest(text).encode() != checksum:
            raise self._bad("its metadata is damaged")
        self.about: dict[str, Any] = json.loads(text)
        self.groups = self._file.num_row_groups
        self._digest = _Digest()
        self._read = 0

    def _bad(self, reason: str) -> RecoveryError:
        return RecoveryError(
            f"the manifest {self.manifest} cannot be used: {reason}; capture it again"
        )

    def tables(self) -> Iterator[pa.Table]:
        """The rows of all groups, in order of path_id, each group a table."""
        return map(self.group, range(self.groups))

    def group(self, index: int) -> pa.Table:
        """The rows of part `index` of the range of path_id, sorted by path_id."""
        try:
            table = self._file.read_row_group(index, use_threads=False)
            if index == self._read:
                self._digest.update(table)
                self._read += 1
            ids = numbers(table["path_id"], "<u8")
        except (OSError, ValueError, IndexError, pa.ArrowException) as problem:
            raise self._bad(str(problem)) from None
        shift = 65 - self.groups.bit_length()
        if len(ids) and (
            (shift < 64 and (int(ids[0]) >> shift, int(ids[-1]) >> shift) != (index, index))
            or not (ids[1:] > ids[:-1]).all()
        ):
            raise self._bad("its rows are not in order")
        if self._read == self.groups and self._digest.hexdigest() != self.about["digest"]:
            raise self._bad("its rows are damaged")
        return table


def read(manifest: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows, sorted by path; `columns` of SCHEMA (default: all)."""
    wanted = list(columns) if columns is not None else SCHEMA.names
    kept = list(dict.fromkeys([*wanted, "path"]))
    tables = [table.select(kept) for table in Reader(manifest).tables()]
    whole = pa.concat_tables(tables).unify_dictionaries().combine_chunks()
    return whole.take(pc.sort_indices(whole["path"])).select(wanted)


def read_info(manifest: Path) -> dict[str, Any]:
    """What a manifest says about itself: schema_version, root, captured_at (UTC), host,
    tool_version, mount_points, complete, entries, files, bytes, errors, digest."""
    return Reader(manifest).about


def subset(manifest: Path, paths: Collection[bytes], output: Path) -> Summary:
    """Write the rows of `paths` as a manifest of its own; paths without a row are left out."""
    reader = Reader(manifest)
    wanted = set(paths)
    ids = np.sort(np.fromiter(map(xxhash.xxh3_64_intdigest, wanted), "<u8", len(wanted)))
    parts = []
    for table in reader.tables():
        candidates = np.flatnonzero(np.isin(numbers(table["path_id"], "<u8"), ids))
        table = table.take(fixed_array(pa.int64(), candidates))
        keep = [n for n, path in enumerate(table["path"].to_pylist()) if path in wanted]
        parts.append(table.take(fixed_array(pa.int64(), np.array(keep, "<i8"))))
    whole = pa.concat_tables(parts).unify_dictionaries().combine_chunks()
    return write(output, _split(whole, group_bits(whole.num_rows), 0), reader.about)
