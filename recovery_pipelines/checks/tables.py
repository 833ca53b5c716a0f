"""tables_complete: the Delta Lake and Iceberg tables of a tree are whole by their own metadata.

A table is a directory with a `_delta_log`, or with `metadata/*.metadata.json`. Its own library
says which files its newest version consists of and what it recorded about each; every one must
be in the tree and hold that. A table that was in this state before the damage is counted apart.
The libraries come with the extra `tables`.
"""

import json
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import gt, lt
from typing import Any, ClassVar, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recovery_pipelines.checks.base import RecoveredState, examples, printable
from recovery_pipelines.checks.canaries import MADE_DATA, MADE_LOG, PlacedFault, table_file
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.faults import edit
from recovery_pipelines.faults.base import Family, Fault
from recovery_pipelines.sandbox import Tree
from recovery_pipelines.verdict import CheckResult, Verdict

_BATCH_ROWS = 1 << 16
_INSTALL = "install the libraries for tables: pip install 'recovery-pipelines[tables]'"


class RecordedFile(NamedTuple):
    """What a table's metadata says of one of its data files; columns by name."""

    path: bytes
    """Relative to the tree."""
    size_bytes: int
    rows: int | None
    nulls: dict[str, int]
    least: dict[str, Any]
    """No value is smaller. Of text it may be a prefix."""
    greatest: dict[str, Any]


class TablesComplete:
    """Opens each table with its own library, and each of its files with pyarrow."""

    name: ClassVar[str] = "tables_complete"

    def canaries(self, sample: RecoveredState) -> Sequence[Fault]:
        def lose(tree: Tree, path: bytes) -> str:
            tree.unlink(path)
            return "removed"

        def replace(tree: Tree, path: bytes) -> str:
            with edit.quiet(tree, path):
                edit.rewrite(tree, path, [table_file(rows=7)])
            return "another file of the same kind, with 7 rows"

        fault = partial(PlacedFault, caught_by=(self.name,))
        return [
            fault("table_data_lost", Family.STRUCTURE, paths=[MADE_DATA], damage=lose),
            fault("table_metadata_lost", Family.STRUCTURE, paths=[MADE_LOG], damage=lose),
            fault("table_data_replaced", Family.CONTENT, paths=[MADE_DATA], damage=replace),
        ]

    def run(self, state: RecoveredState) -> CheckResult:
        expected = tables_among(state.expected_entries["path"].to_pylist())
        found = tables_among(state.found_entries["path"].to_pylist())
        changed = state.comparison.differences["path"].to_pylist()
        wrong, broken_before = [], 0
        for root in sorted(expected | found):
            problem = (
                next(problems_of(state.tree, root, found[root]), None)
                if root in found
                else f"the metadata of this {expected[root]} table is lost"
            )
            if problem is None:
                continue
            if any(_is_below(path, root) for path in changed):
                wrong.append(f"{printable(root)}: {problem}")
            else:
                broken_before += 1
        sound = len(expected | found) - len(wrong) - broken_before
        words = f"{sound} tables are whole"
        if wrong:
            words += f"; {len(wrong)} tables are not{examples(wrong)}"
        if broken_before:
            words += f"; {broken_before} tables not counted: not whole before the damage either"
        aim = f"{len(expected) - broken_before} tables have all files that their metadata records"
        if wrong:
            return CheckResult(self.name, Verdict.FAIL, aim, words)
        if not sound:
            words += "; there is no table to prove it with: drop tables_complete from the plan"
            return CheckResult(self.name, Verdict.UNVERIFIED, aim, words)
        return CheckResult(self.name, Verdict.PASS, aim, words)


def tables_among(paths: Iterable[bytes]) -> dict[bytes, str]:
    """Directory to format of each table that the files at `paths` make up."""
    tables = {}
    for path in paths:
        folder, name = posixpath.split(path)
        root, kind = posixpath.split(folder)
        if kind == b"_delta_log" and name.endswith((b".json", b".checkpoint.parquet")):
            tables[root] = "Delta Lake"
        elif kind == b"metadata" and name.endswith(b".metadata.json"):
            tables[root] = "Iceberg"
    return tables


def problems_of(tree: Tree, root: bytes, kind: str) -> Iterator[str]:
    """What is not as the table's metadata records it. Raises RecoveryError without its library."""
    try:
        recorded = list((_delta_files if kind == "Delta Lake" else _iceberg_files)(tree, root))
    except ImportError as error:
        raise RecoveryError(f"{kind} tables cannot be read ({error}): {_INSTALL}") from error
    except Exception as error:  # libraries raise nearly anything on damaged metadata
        yield f"{kind} cannot open it: {type(error).__name__}: {str(error)[:200]}"
        return
    for file in recorded:
        try:
            yield from _differences(tree, file)
        except Exception as error:  # as above, for damaged data
            yield f"{printable(file.path)}: {type(error).__name__}: {str(error)[:200]}"


def _differences(tree: Tree, file: RecordedFile) -> Iterator[str]:
    where = printable(file.path)
    with os.fdopen(tree.open(file.path, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:
        size_bytes = os.fstat(opened.fileno()).st_size
        if size_bytes != file.size_bytes:
            yield f"{where}: {size_bytes} bytes, {file.size_bytes} recorded"
        data = pq.ParquetFile(opened, page_checksum_verification=True)
        rows, nulls = 0, dict.fromkeys(file.nulls, 0)
        for batch in data.iter_batches(_BATCH_ROWS):
            rows += batch.num_rows
            for name, column in zip(batch.schema.names, batch.columns, strict=True):
                if name in nulls:
                    nulls[name] += column.null_count
                yield from _out_of_range(f"{where}, column {name!a}", column, file, name)
        if file.rows is not None and rows != file.rows:
            yield f"{where}: {rows} rows, {file.rows} recorded"
        for name, count in file.nulls.items():
            if name in data.schema_arrow.names and nulls[name] != count:
                yield f"{where}, column {name!a}: {nulls[name]} nulls, {count} recorded"


def _out_of_range(where: str, column: pa.Array, file: RecordedFile, name: str) -> Iterator[str]:
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_string(kind)):
        return
    found = pc.min_max(column).as_py()
    for recorded, value, wrong in (
        (file.least.get(name), found["min"], lt),
        (file.greatest.get(name), found["max"], gt),
    ):
        comparable = isinstance(recorded, str) == isinstance(value, str)
        if recorded is not None and value is not None and comparable and wrong(value, recorded):
            yield f"{where}: {value!a} is out of the recorded range"


def _delta_files(tree: Tree, root: bytes) -> Iterator[RecordedFile]:
    from deltalake import DeltaTable  # an extra

    actions: Any = DeltaTable(os.fsdecode(_place(tree, root))).get_add_actions(flatten=True)
    for row in pa.table(actions).to_pylist():
        address = row["path"]
        if posixpath.isabs(address) or ":" in address.split("/")[0]:
            raise ValueError(f"a data file lies outside of the table: {address}")

        def recorded(prefix: str, row: dict[str, Any] = row) -> dict[str, Any]:
            return {
                name.removeprefix(prefix): value
                for name, value in row.items()
                if name.startswith(prefix) and value is not None
            }

        yield RecordedFile(
            path=posixpath.join(root, unquote(address).encode()),
            size_bytes=row["size_bytes"],
            rows=row["num_records"],
            nulls=recorded("null_count."),
            least=recorded("min."),
            greatest=recorded("max."),
        )


def _iceberg_files(tree: Tree, root: bytes) -> Iterator[RecordedFile]:
    from pyiceberg.conversions import from_bytes  # an extra
    from pyiceberg.table import StaticTable
    from pyiceberg.types import PrimitiveType

    folder = posixpath.join(root, b"metadata")
    metadata, name = max(
        (
            (json.loads(tree.read(posixpath.join(folder, name))), name)
            for name in tree.listdir(folder)
            if name.endswith(b".metadata.json")
        ),
        key=lambda found: found[0]["last-updated-ms"],
    )
    table = StaticTable.from_metadata(
        os.fsdecode(_place(tree, posixpath.join(folder, name))),
        {
            "py-io-impl": "recovery_pipelines.checks.relocated.RelocatedIO",
            "recorded-location": metadata["location"],
            "location": os.fsdecode(_place(tree, root)),
        },
    )
    columns = {
        field.field_id: (field.name, field.field_type)
        for field in table.schema().fields
        if isinstance(field.field_type, PrimitiveType)
    }

    def by_name(values: dict[int, Any] | None) -> dict[str, Any]:
        known = ((*columns[id], value) for id, value in (values or {}).items() if id in columns)
        return {
            name: from_bytes(kind, value) if isinstance(value, bytes) else value
            for name, kind, value in known
        }

    for task in table.scan().plan_files():
        for file in (task.file, *task.delete_files):
            yield RecordedFile(
                path=posixpath.join(root, _inside(file.file_path, metadata["location"])),
                size_bytes=file.file_size_in_bytes,
                rows=file.record_count,
                nulls=by_name(file.null_value_counts),
                least=by_name(file.lower_bounds),
                greatest=by_name(file.upper_bounds),
            )


def _inside(address: str, location: str) -> bytes:
    if not address.startswith(location.rstrip("/") + "/"):
        raise ValueError(f"a file lies outside of the table: {address}")
    return address[len(location.rstrip("/")) + 1 :].encode()


def _place(tree: Tree, path: bytes) -> bytes:
    return os.path.join(os.fsencode(tree.path), path)  # noqa: PTH118


def _is_below(path: bytes, root: bytes) -> bool:
    return not root or path == root or path.startswith(root + b"/")
