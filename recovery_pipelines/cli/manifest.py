"""`recovery manifest`: capture a tree, and verify a tree against its manifest."""

import json
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.manifest import Progress, Summary, capture
from recovery_pipelines.manifest.kinds import IGNORABLE

if TYPE_CHECKING:
    from recovery_pipelines.manifest import Comparison

_IDENTICAL, _DIFFERENT, _COULD_NOT_TELL, _INTERRUPTED = 0, 1, 2, 130
_SHOWN_PER_KIND = 20

_progress_option = click.option(
    "--progress/--no-progress",
    default=None,
    help="Show progress on stderr (default: only on a terminal).",
)
_ignore_option = click.option(
    "--ignore",
    multiple=True,
    type=click.Choice(IGNORABLE),
    help="What the target does not promise to keep. Can be repeated; recorded in the result.",
)


@click.group()
def command() -> None:
    """Capture what a tree holds, and verify trees against it."""


@command.command()
@click.argument("tree", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@_progress_option
def create(tree: Path, output: Path, progress: bool | None) -> None:
    """Write the manifest of TREE. Exit code 0: complete; 2: entries could not be read."""
    with _exit_codes():
        summary = _capture(tree, output, progress)
        click.echo(
            f"{output}: {summary.entries:,} entries, {summary.files:,} files, "
            f"{summary.bytes:,} bytes, digest {summary.digest}"
        )
        if not summary.complete:
            click.echo(
                f"INCOMPLETE: {summary.errors:,} entries could not be read or changed meanwhile; "
                "the column `error` of the manifest says why",
                err=True,
            )
            sys.exit(_COULD_NOT_TELL)


@command.command()
@click.argument("manifest", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("tree", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@_ignore_option
@_progress_option
def verify(
    manifest: Path, tree: Path, as_json: bool, ignore: tuple[str, ...], progress: bool | None
) -> None:
    """Verify TREE against MANIFEST.

    Exit code 0: identical; 1: differences; 2: could not tell.
    """
    with _exit_codes(), tempfile.TemporaryDirectory(prefix="recovery-verify-") as scratch:
        found = Path(scratch) / "found.parquet"
        summary = _capture(tree, found, progress)
        from recovery_pipelines.manifest import compare

        comparison = compare(manifest, found, ignore=ignore)
        report = _print_json if as_json else _print_text
        report(comparison, manifest, tree, summary)
        sys.exit(_exit_code(comparison))


@command.command()
@click.argument("expected", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("found", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--shard", required=True, help="Which: 0/16 to 15/16, say; a power of two.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True)
@_ignore_option
def shard(expected: Path, found: Path, shard: str, output: Path, ignore: tuple[str, ...]) -> None:
    """Compare one shard of manifest FOUND with manifest EXPECTED; `merge` has the verdict.

    Exit code 0: compared; 2: it cannot be.
    """
    with _exit_codes():
        from recovery_pipelines.manifest import write_shard

        number, slash, count = shard.partition("/")
        if not (slash and number.isdigit() and count.isdigit()):
            raise RecoveryError(f"--shard {shard}: give it as 0/16, the first of sixteen")
        write_shard(expected, found, int(number), int(count), output, ignore=ignore)
        click.echo(f"{output}: shard {shard}")


@command.command()
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
def merge(shards: tuple[Path, ...]) -> None:
    """The verdict of all SHARDS of one comparison.

    Exit code 0: identical; 1: differences; 2: could not tell, or a shard is missing.
    """
    with _exit_codes():
        from recovery_pipelines.manifest import merge as merge_shards

        comparison = merge_shards(shards)
        _print_comparison(comparison, "the expected manifest", "the other")
        sys.exit(_exit_code(comparison))


def _exit_code(comparison: "Comparison") -> int:
    if comparison.identical:
        return _IDENTICAL
    return _DIFFERENT if comparison.differences.num_rows else _COULD_NOT_TELL


@contextmanager
def _exit_codes() -> Iterator[None]:
    """No way out of these commands but the promised codes: 1 would mean "differences"."""

    stopped: list[int] = []

    def stop(signum: int, frame: object) -> None:
        stopped.append(128 + signum)
        sys.exit(128 + signum)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:
            click.echo("interrupted", err=True)
        raise
    except Exception as problem:
        if stopped:  # a module that is being imported makes an ImportError of it
            sys.exit(stopped[0])
        if isinstance(problem, RecoveryError):
            click.echo(f"error: {problem}", err=True)
        else:
            traceback.print_exc()
        sys.exit(_COULD_NOT_TELL)


def _capture(tree: Path, output: Path, progress: bool | None) -> Summary:
    if not (sys.stderr.isatty() if progress is None else progress):
        return capture(tree, output)
    with _progress_line(str(tree)) as show:
        return capture(tree, output, progress=show)


@contextmanager
def _progress_line(title: str) -> Iterator[Callable[[Progress], None]]:
    """A line on stderr with files, bytes, rate and the estimated time left."""
    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Bar(*columns, console=Console(stderr=True, force_terminal=True), transient=True) as bar:
        task = bar.add_task(title, total=1.0, text="")

        def show(now: Progress) -> None:
            rate = now.bytes / max(now.elapsed_seconds, 1e-3)
            left = now.elapsed_seconds * (1 / max(now.fraction, 1e-3) - 1)
            text = (
                f"{now.files:,} files  {decimal(now.bytes)}  {decimal(int(rate))}/s  "
                f"about {left:,.0f} s left"
            )
            bar.update(task, completed=now.fraction, text=text)

        yield show


def _print_text(comparison: "Comparison", manifest: Path, tree: Path, found: Summary) -> None:
    ignored = f" (not compared: {', '.join(comparison.ignored)})" if comparison.ignored else ""
    if comparison.identical:
        click.echo(
            f"identical: {comparison.entries:,} entries, {found.files:,} files, "
            f"{found.bytes:,} bytes{ignored}"
        )
        return
    _print_comparison(comparison, str(manifest), str(tree))


def _print_comparison(comparison: "Comparison", manifest: str, tree: str) -> None:
    ignored = f" (not compared: {', '.join(comparison.ignored)})" if comparison.ignored else ""
    if comparison.identical:
        click.echo(f"identical: {comparison.entries:,} entries{ignored}")
        return
    for kind, count in comparison.counts.items():
        click.echo(f"{kind}: {count:,}")
        shown = 0
        for row in _rows(comparison.differences):
            if row["kind"] == kind and (shown := shown + 1) <= _SHOWN_PER_KIND:
                click.echo(f"  {_text(row['path'])}: {row['expected']} -> {row['found']}")
        if count > _SHOWN_PER_KIND:
            click.echo(f"  ... and {count - _SHOWN_PER_KIND:,} more; --json lists all")
    if comparison.undecided:
        click.echo(f"could not tell: {comparison.undecided:,}")
        for row in comparison.undecided_entries.slice(0, _SHOWN_PER_KIND).to_pylist():
            click.echo(f"  {_text(row['path'])}: {row['reason']}")
    if comparison.differences.num_rows:
        click.echo(f"DIFFERENT: {tree} is not what {manifest} describes{ignored}")
    elif comparison.undecided:
        click.echo(f"COULD NOT TELL whether {tree} is what {manifest} describes{ignored}")
    else:
        click.echo(f"COULD NOT TELL: {manifest} describes an empty tree, nothing was verified")


def _print_json(comparison: "Comparison", manifest: Path, tree: Path, found: Summary) -> None:
    result = {
        "result": ("identical", "different", "could not tell")[_exit_code(comparison)],
        "manifest": str(manifest),
        "tree": str(tree),
        "ignored": comparison.ignored,
        "expected_entries": comparison.entries,
        "found_entries": found.entries,
        "found_files": found.files,
        "found_bytes": found.bytes,
        "undecided": comparison.undecided,
        "counts": comparison.counts,
        "differences": [_with_text_path(row) for row in _rows(comparison.differences)],
        "undecided_entries": [_with_text_path(row) for row in _rows(comparison.undecided_entries)],
    }
    click.echo(json.dumps(result, indent=2))


def _rows(table: Any) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(max_chunksize=10_000):
        yield from batch.to_pylist()


def _text(path: bytes) -> str:
    """A path for people: one line, whatever bytes it is made of; the root is a dot."""
    text = path.decode("utf-8", "backslashreplace") or "."
    return text if text.isprintable() else repr(text)[1:-1]


def _with_text_path(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no bytes: a path that is not UTF-8 is also given in hex."""
    path: bytes = row["path"]
    try:
        return row | {"path": path.decode()}
    except UnicodeDecodeError:
        return row | {"path": _text(path), "path_hex": path.hex()}
