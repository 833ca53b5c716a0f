"""Two manifests of millions of rows compared: ours beside DuckDB, polars and pandas, in one run.

Each comparison is a process of its own and counts the same: entries missing, unexpected, with other
content, with another time. Ours looks at every aspect, and at the checksums of both files.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import xxhash
from race import console
from rich.table import Table

from recovery_pipelines.manifest import store
from recovery_pipelines.manifest.schema import SCHEMA

COLUMNS = "path, content_xxh3_128, mtime_ns"
OURS = """
from pathlib import Path
from recovery_pipelines.manifest import compare
counts = compare(Path(left), Path(right)).counts
print(*(counts.get(kind, 0) for kind in ("missing", "unexpected", "content", "mtime")))
"""
DUCKDB = f"""
import duckdb
{{limit}}
print(*duckdb.sql(f'''
  select count(*) filter (b.path is null), count(*) filter (a.path is null),
         count(*) filter (a.content_xxh3_128 <> b.content_xxh3_128),
         count(*) filter (a.mtime_ns <> b.mtime_ns)
  from (select {COLUMNS} from read_parquet('{{{{left}}}}')) a
  full join (select {COLUMNS} from read_parquet('{{{{right}}}}')) b on a.path = b.path
''').fetchone())
"""
POLARS = """
import polars as pl
a, b = (pl.scan_parquet(file).select("path", "content_xxh3_128", "mtime_ns")
        for file in (left, right))
both = a.join(b, on="path", how="full")
print(*both.select(
    pl.col("path_right").is_null().sum().alias("missing"),
    pl.col("path").is_null().sum().alias("unexpected"),
    (pl.col("content_xxh3_128") != pl.col("content_xxh3_128_right")).sum().alias("content"),
    (pl.col("mtime_ns") != pl.col("mtime_ns_right")).sum().alias("mtime"),
).collect(engine="streaming").row(0))
"""
PANDAS = """
import pandas as pd
columns = ["path", "content_xxh3_128", "mtime_ns"]
a, b = (pd.read_parquet(file, columns=columns, dtype_backend="pyarrow") for file in (left, right))
both = a.merge(b, on="path", how="outer", suffixes=("", "_right"), indicator=True)
print((both["_merge"] == "left_only").sum(), (both["_merge"] == "right_only").sum(),
      (both["content_xxh3_128"] != both["content_xxh3_128_right"]).sum(),
      (both["mtime_ns"] != both["mtime_ns_right"]).sum())
"""


@dataclass
class Way:
    """One way to compare; `program` finds the files as `left` and `right`, prints four counts."""

    name: str
    program: str
    module: str = "recovery_pipelines"
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    counts: str = ""

    def run(self, left: Path, right: Path) -> None:
        program = f"import sys\nleft, right = sys.argv[1:]\n{self.program}"
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-c", program, left, right], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        self.counts = process.stdout.read().strip()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            self.counts = f"failed: {process.returncode}"
        self.seconds.append(time.perf_counter() - started)
        self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss << 10)


def ways() -> list[Way]:
    return [
        Way("ours", OURS),
        Way("DuckDB", DUCKDB.format(limit=""), "duckdb"),
        Way(
            "DuckDB, 500 MB",
            DUCKDB.format(limit="duckdb.sql(\"set memory_limit='500MB'\")"),
            "duckdb",
        ),
        Way("polars, streaming", POLARS, "polars"),
        Way("pandas, Arrow types", PANDAS, "pandas"),
    ]


def synthetic_manifest(output: Path, rows: int, changed: bool) -> None:
    """A manifest of `rows` files that never existed; `changed` differs in 0.1 % of the paths and
    in 0.5 % of content and mtime."""
    parts: list[tuple[np.ndarray, list[bytes]]] = []
    for start in range(0, rows, 1_000_000):
        numbers = range(start, min(start + 1_000_000, rows))
        paths = [b"department-%d/project-%d/file-%d.dat" % (n % 97, n % 9973, n) for n in numbers]
        if changed:
            paths[::1000] = [path + b".new" for path in paths[::1000]]
        ids = np.fromiter(map(xxhash.xxh3_64_intdigest, paths), "<u8", len(paths))
        parts.append((ids, paths))
    bits = store.group_bits(rows)
    shift = np.uint64(64 - bits)

    def tables() -> Iterator[pa.Table]:
        for group in range(1 << bits):
            ids_here, paths_here = [], []
            for ids, paths in parts:
                places = np.flatnonzero(ids >> shift == group) if bits else np.arange(len(ids))
                ids_here.append(ids[places])
                paths_here += [paths[place] for place in places.tolist()]
            ids = np.concatenate(ids_here)
            order = np.argsort(ids)
            ids = ids[order]
            count = len(ids)
            touched = (ids % np.uint64(200) == 0) & changed
            content = np.stack([ids ^ touched.astype("<u8"), ids], axis=1)
            columns = {
                "path": store.list_array([paths_here[n] for n in order.tolist()], pa.binary()),
                "path_id": store.fixed_array(pa.uint64(), ids),
                "type": store.type_array(np.zeros(count, np.int8), np.ones(count, np.bool_)),
                "link_target": pa.nulls(count, pa.binary()),
                "error": pa.nulls(count, pa.string()),
                "mtime_ns": store.fixed_array(
                    pa.int64(), (10**18 + (ids >> np.uint64(10)) + touched).astype("<i8")
                ),
                "content_xxh3_128": store.fixed_array(pa.binary(16), content.view("V16")[:, 0]),
                "xattr_xxh3_128": store.fixed_array(
                    pa.binary(16), np.full(count, xxhash.xxh3_128_digest(b""), "V16")
                ),
                "mode": store.fixed_array(pa.uint16(), np.full(count, 0o644, "<u2")),
            }
            for name in ("size", "uid", "gid", "hard_link_group", "device"):
                kind = SCHEMA.field(name).type
                values = np.zeros(count, f"V{kind.bit_width // 8}")
                columns[name] = store.fixed_array(kind, values)
            yield pa.table([columns[field.name] for field in SCHEMA], schema=SCHEMA)

    store.write(output, tables(), {"schema_version": 1, "root": "/none", "mount_points": []})


@click.command()
@click.option("--rows", default=10_000_000)
@click.option("--rounds", default=1)
@click.option("--base", type=click.Path(path_type=Path), help="Where the manifests are made.")
def main(rows: int, rounds: int, base: Path | None) -> None:
    """All ways in turn, round by round."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that scratch space is freed
    with tempfile.TemporaryDirectory(prefix="bench-compare-", dir=base) as temporary:
        left, right = (Path(temporary) / f"{name}.parquet" for name in ("left", "right"))
        for path, changed in ((left, False), (right, True)):
            maker = os.fork()  # its memory goes when it ends
            if maker == 0:
                synthetic_manifest(path, rows, changed)
                os._exit(0)
            if os.waitpid(maker, 0)[1] != 0:
                raise SystemExit("the synthetic manifest could not be made")
        size = left.stat().st_size / rows
        every = ways()
        able = [way for way in every if find_spec(way.module)]
        for _ in range(rounds):
            for way in able:
                way.run(left, right)
    ours = able[0]
    table = Table(
        title=f"compare {rows:,} rows of {size:.0f} bytes ({rounds} rounds, "
        f"load {os.getloadavg()[0]:.1f})"
    )
    for heading in ("", "median s", "its time / ours", "peak MiB", "counts"):
        table.add_column(heading, justify="left" if not heading else "right")
    for way in every:
        if way not in able:
            table.add_row(way.name, "missing", f"not installed: {way.module}", "", "")
            continue
        ratios = [theirs / our for theirs, our in zip(way.seconds, ours.seconds, strict=True)]
        right_counts = way.counts == ours.counts
        table.add_row(
            way.name,
            f"{statistics.median(way.seconds):.1f}",
            f"{statistics.median(ratios):.2f}",
            f"{way.peak_bytes / (1 << 20):.0f}",
            way.counts if right_counts else f"WRONG: {way.counts}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
