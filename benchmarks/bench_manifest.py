"""`recovery manifest` beside the tools that people use for the same work, in one run.

Each run comes after the tree has been warmed (or evicted).
"""

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click
import numpy as np
import psutil
import race
import trees
from race import Competitor, console, measure, shell

from recovery_pipelines.manifest import capture

RECOVERY = [*race.RECOVERY, "manifest"]


def hash_with(tree: Path, command: str) -> str:
    return f"find '{tree}' -type f -print0 | xargs -0 -P2 -n 500 {command}"


def create_race(tree: Path, scratch: Path, before: Callable[[], None], rounds: int) -> None:
    """Ours writes path, type, size, mode, owner, mtime, links, xattrs and hash; they a hash."""
    output = scratch / "m.parquet"
    measure(
        f"create: {tree.name}",
        "ours, in process",
        [
            Competitor("ours, in process", lambda: capture(tree, output)),
            Competitor("ours, command", shell(*RECOVERY, "create", tree, "-o", output)),
            Competitor("find | xargs -P2 xxh128sum", hash_with(tree, "xxh128sum"), ("xxh128sum",)),
            Competitor(
                "find | xargs -P2 b3sum", hash_with(tree, "b3sum --num-threads 1"), ("b3sum",)
            ),
        ],
        before,
        rounds,
    )


def verify_race(tree: Path, scratch: Path, rounds: int) -> None:
    """A copy against the manifest or the original."""
    copy = scratch / "copy"
    subprocess.run(["cp", "-a", tree, copy], check=True)
    manifest, hashes = scratch / "expected.parquet", scratch / "hashes"
    capture(tree, manifest)
    prepare = f"cd '{tree}' && hashdeep -j2 -c sha256 -r -l . > '{hashes}'"
    if shutil.which("hashdeep"):
        subprocess.run(["bash", "-c", prepare], check=True)
    measure(
        f"verify: {tree.name}",
        "ours, command",
        [
            Competitor("ours, command", shell(*RECOVERY, "verify", manifest, copy)),
            Competitor("diff -rq", shell("diff", "-rq", tree, copy), ("diff",)),
            Competitor("rsync -nac", shell("rsync", "-nac", f"{tree}/", copy), ("rsync",)),
            Competitor(
                "hashdeep -a (sha256, -j2)",
                f"cd '{copy}' && hashdeep -j2 -c sha256 -r -l -a -k '{hashes}' .",
                ("hashdeep",),
            ),
            Competitor("rclone check", shell("rclone", "check", tree, copy), ("rclone",)),
        ],
        lambda: warm(tree, copy),
        rounds,
    )
    shutil.rmtree(copy)


def warm(*places: Path) -> None:
    for tree in places:
        subprocess.run(
            ["bash", "-c", hash_with(tree, "cat")], check=True, stdout=subprocess.DEVNULL
        )


def evict(tree: Path) -> None:
    """Drop the content of all files from the page cache (inodes stay)."""
    os.sync()
    for directory, _, names in os.walk(tree):
        for name in names:
            fd = os.open(Path(directory) / name, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


@contextmanager
def loop_disk(scratch: Path, gib: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A journalled ext4 in a file, and how to make it cold: unmount and mount again."""
    image, place = scratch / "disk.img", scratch / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(gib << 30)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    device = subprocess.run(
        ["losetup", "--find", "--show", "--direct-io=on", image],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    mount, unmount = ["mount", device, place], ["umount", place]

    def remount() -> None:
        subprocess.run(unmount, check=True)
        subprocess.run(mount, check=True)

    try:
        subprocess.run(mount, check=True)
        try:
            yield place, remount
        finally:
            subprocess.run(unmount, check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def cold_race(shape: trees.Shape, scratch: Path, rounds: int) -> None:
    with ExitStack() as stack:
        if os.geteuid() == 0 and all(map(shutil.which, ("mkfs.ext4", "losetup"))):
            gib = 2 + (shape.files * shape.most_bytes >> 30)
            place, before = stack.enter_context(loop_disk(scratch, gib))
            tree = trees.build(shape, place)
        else:
            console.print("not root: cold means evicted page cache, inodes stay warm")
            tree = trees.build(shape, scratch)
            before = lambda: evict(tree)  # noqa: E731
        output = scratch / "cold.parquet"
        measure(
            f"create, cold: {tree.name}",
            "ours, command",
            [
                Competitor("ours, command", shell(*RECOVERY, "create", tree, "-o", output)),
                Competitor(
                    "find | xargs -P2 xxh128sum", hash_with(tree, "xxh128sum"), ("xxh128sum",)
                ),
                Competitor(
                    "find | xargs -P8 xxh128sum",
                    hash_with(tree, "xxh128sum").replace("-P2", "-P8"),
                    ("xxh128sum",),
                ),
            ],
            before,
            rounds,
        )


def memory_rate() -> float:
    """Bytes a second that two threads copy in memory together, the best of five."""
    blocks = [(np.ones(256 << 20, np.uint8), np.empty(256 << 20, np.uint8)) for _ in range(2)]
    best = 0.0
    for _ in range(5):
        threads = [
            threading.Thread(target=np.copyto, args=(target, source)) for source, target in blocks
        ]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, (512 << 20) / (time.perf_counter() - started))
    return best


def against_memory(tree: Path, scratch: Path, rounds: int) -> None:
    """Large files: how much of the rate of memcpy a capture reaches."""
    ratios = []
    for _ in range(rounds):
        warm(tree)
        started = time.perf_counter()
        summary = capture(tree, scratch / "m.parquet")
        ours = summary.bytes / (time.perf_counter() - started)
        ratios.append(ours / memory_rate())
    console.print(
        f"{tree.name}: {statistics.median(ratios):.2f} of two-thread memcpy, per round "
        + " ".join(f"{ratio:.2f}" for ratio in ratios)
    )


def peak_memory(argv: list[str]) -> float:
    """The greatest sum of resident memory (MiB) of a command and its children."""
    process = psutil.Popen(argv, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        total = 0
        for one in [process, *process.children()]:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        peak = max(peak, total)
        time.sleep(0.02)
    if process.returncode != 0:
        raise SystemExit(f"{argv} ended with exit code {process.returncode}")
    return peak / (1 << 20)


@click.command()
@click.option("--tree", type=click.Choice(["tiny", "small", "large", "1m"]), multiple=True)
@click.option("--files", default=40_000, help="Files of the trees tiny and small.")
@click.option("--large-mib", default=1536, help="Size of each of the four large files.")
@click.option("--rounds", default=3)
@click.option("--cold", is_flag=True, help="Measure small files from a cold disk.")
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    help="Where trees are made; kept there and used again (default: temporary).",
)
def main(
    tree: tuple[str, ...],
    files: int,
    large_mib: int,
    rounds: int,
    cold: bool,
    base: Path | None,
) -> None:
    """Without options: the trees tiny, small and large, warm, and verify on small."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that scratch space is freed
    chosen = tree or (() if cold else ("tiny", "small", "large"))
    shapes = {
        "tiny": trees.tiny(files),
        "small": trees.small(files),
        "large": trees.large(4, large_mib),
        "1m": trees.tiny(1_000_000),
    }
    with tempfile.TemporaryDirectory(prefix="bench-manifest-") as temporary:
        scratch = Path(temporary)
        for name in chosen:
            place = trees.build(shapes[name], base or scratch)
            create_race(place, scratch, lambda place=place: warm(place), rounds)
            if name == "small":
                verify_race(place, scratch, rounds)
            if name == "large":
                against_memory(place, scratch, rounds)
            if name == "1m":
                argv = [*RECOVERY, "create", str(place), "-o", str(scratch / "m.parquet")]
                console.print(f"{place.name}: peak {peak_memory(argv):.0f} MiB, workers included")
        if cold:
            cold_race(shapes["small"], scratch, rounds)


if __name__ == "__main__":
    main()
