"""What a target of 10^9 entries needs: time, memory, storage, and money by confidence.

The costs of one entry are measured here and now on small manifests; everything else follows from
them and from the prices and rates that are given. The spread of a campaign over workers that fail
is simulated. docs/scale.md says how to read it.
"""

import heapq
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import numpy as np
import trees
from bench_compare import synthetic_manifest
from race import console
from rich.table import Table

from recovery_pipelines.audits.sampling import sample_size
from recovery_pipelines.manifest import PathRange, capture, take_part

CONFIDENCE = 0.95
_COMPARE = (
    "import sys; from pathlib import Path; from recovery_pipelines.manifest import compare; "
    "compare(Path(sys.argv[1]), Path(sys.argv[2]))"
)


@dataclass(frozen=True)
class Costs:
    """Of one entry, on one machine of this kind."""

    capture_seconds: float
    compare_seconds: float
    scan_seconds: float
    """To look whether it belongs to a shard: every shard reads the whole manifest."""
    compare_peak_bytes: float
    """Of the whole process; it does not grow with the entries."""
    manifest_bytes: float


@click.command()
@click.option("--entries", default=1_000_000_000)
@click.option("--data-terabytes", default=100.0, help="Of the target.")
@click.option("--read-gigabytes", default=0.5, help="Read and hashed per second by one worker.")
@click.option("--workers", default=16)
@click.option("--shards", default=256, help="Of about equal size.")
@click.option("--failures", default=0.02, help="Chance that a worker dies during a shard.")
@click.option("--worker-hour", default=0.20, help="Price of one worker for an hour.")
@click.option("--terabyte-out", default=10.0, help="Price of reading a terabyte of the backup.")
@click.option("--repositories", default=1, help="They share the entries; each has a manifest.")
@click.option("--restore-entries", default=600.0, help="Restored per second by one worker.")
@click.option("--index-bytes", default=245.0, help="Memory of the tool for an entry of the backup.")
@click.option("--restore-bytes", default=845.0, help="And for an entry that it restores.")
@click.option("--worker-mib", default=300.0, help="Memory of a worker and its tool for no data.")
@click.option("--measured-files", default=20_000)
@click.option("--measured-rows", default=400_000)
def main(
    entries: int,
    data_terabytes: float,
    read_gigabytes: float,
    workers: int,
    shards: int,
    failures: float,
    worker_hour: float,
    terabyte_out: float,
    repositories: int,
    restore_entries: float,
    index_bytes: float,
    restore_bytes: float,
    worker_mib: float,
    measured_files: int,
    measured_rows: int,
) -> None:
    costs = measure(measured_files, measured_rows)
    read_seconds = data_terabytes * 1e12 / entries / (read_gigabytes * 1e9)
    each_seconds = max(1 / restore_entries, read_seconds) + costs.capture_seconds
    scan_seconds = entries / repositories * costs.scan_seconds
    shard_seconds = entries / shards * (each_seconds + costs.compare_seconds) + scan_seconds
    hours, tries = simulate(shard_seconds, shards, workers, failures)
    console.print(
        f"measured: capture {1e6 * costs.capture_seconds:.1f} us, compare "
        f"{1e6 * costs.compare_seconds:.2f} us, look at {1e6 * costs.scan_seconds:.2f} us, "
        f"{costs.manifest_bytes:.0f} bytes an entry; "
        f"compare peaks at {costs.compare_peak_bytes / (1 << 20):.0f} MiB"
    )
    memory = worker_mib * (1 << 20) + entries * (
        index_bytes / repositories + restore_bytes / shards
    )
    disk = data_terabytes * 1e12 / shards + entries / shards * (4096 + 2 * costs.manifest_bytes)
    console.print(
        f"{entries:,} entries in {shards} shards of {entries // shards:,}: each "
        f"{shard_seconds / 3600:.2f} h, {scan_seconds / 60:.0f} min of them for its part of a "
        f"manifest of {entries / repositories * costs.manifest_bytes / 1e9:.1f} GB"
    )
    console.print(
        f"a worker: {disk / 1e9:,.0f} GB of disk, {memory / 1e9:,.1f} GB of memory, "
        f"{entries / repositories * index_bytes / 1e9:,.1f} GB of them the tool's index of its "
        "whole repository"
    )
    console.print(
        f"{workers} workers, {failures:.0%} of the shards cut off: {hours:.1f} h, {tries} tries "
        "(median of 200 simulations)"
    )
    table = Table(title=f"what is proven, {CONFIDENCE:.0%} sure, if nothing bad is found")
    for heading in ("at most bad", "entries restored", "worker hours", "price", "price per nine"):
        table.add_column(heading, justify="right")
    for bad in (0.01, 0.001, 0.0001, 0.00001, 0.0):
        restored = sample_size(entries, bad, CONFIDENCE) if bad else entries
        busy_hours = restored * (each_seconds + costs.compare_seconds) / 3600
        if not bad:
            busy_hours += shards * scan_seconds / 3600
        terabytes = data_terabytes * restored / entries
        price = busy_hours * worker_hour + terabytes * terabyte_out
        nines = -math.log10(bad) if bad else math.log10(entries)
        table.add_row(
            f"{bad:.3%}" if bad else "none",
            f"{restored:,}",
            f"{busy_hours:,.2f}",
            f"{price:,.2f}",
            f"{price / nines:,.2f}",
        )
    console.print(table)


def measure(files: int, rows: int) -> Costs:
    """Each cost from the difference of two sizes, so that what does not grow is left out."""
    with tempfile.TemporaryDirectory(prefix="plan-billion-") as temporary:
        scratch = Path(temporary)
        small, large = (
            _capture_seconds(scratch / f"tree-{count}", count) for count in (files // 4, files)
        )
        capture_seconds = (large - small) / (files - files // 4)
        seconds, sizes, scans = [], [], []
        for count in (rows // 4, rows):
            manifest = scratch / f"{count}.parquet"
            synthetic_manifest(manifest, count, False)
            command = [sys.executable, "-c", _COMPARE, str(manifest), str(manifest)]
            seconds.append(_least(partial(subprocess.run, command, check=True)))
            sizes.append(manifest.stat().st_size)
            part = scratch / "part.parquet"
            scans.append(_least(partial(take_part, manifest, PathRange(b"\xff"), part, share=rows)))
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10
        step = rows - rows // 4
        return Costs(
            capture_seconds=capture_seconds,
            compare_seconds=(seconds[1] - seconds[0]) / step,
            scan_seconds=(scans[1] - scans[0]) / step,
            compare_peak_bytes=peak,
            manifest_bytes=(sizes[1] - sizes[0]) / step,
        )


def _capture_seconds(place: Path, files: int) -> float:
    place.mkdir()
    tree = trees.build(trees.tiny(files), place)
    return _least(partial(capture, tree, place / "measured.parquet"))


def _least(work: Callable[[], object]) -> float:
    """Seconds of the fastest of three tries: what other work slows down most says nothing."""
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def simulate(shard_seconds: float, shards: int, workers: int, failures: float) -> tuple[float, int]:
    """Hours until every shard has its verdict, and tries; the median of 200 simulations.

    Workers take the next shard when they are free. A shard takes its time give or take 30 %
    (lognormal); one that is cut off, at any moment, is done again.
    """
    rng = np.random.default_rng(1)
    hours, tries = [], []
    for _ in range(200):
        free = [0.0] * workers
        left, tried = shards, 0
        while left:
            at = heapq.heappop(free)
            takes = shard_seconds * rng.lognormal(0.0, 0.3)
            cut_off = rng.random() < failures
            heapq.heappush(free, at + takes * (rng.random() if cut_off else 1.0))
            left -= not cut_off
            tried += 1
        hours.append(max(free) / 3600)
        tries.append(tried)
    return float(np.median(hours)), int(np.median(tries))


if __name__ == "__main__":
    main()
