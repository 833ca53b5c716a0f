"""`recovery evidence`: verify what drills left, publish its head, change its key, hand it over."""

import re
import sys
from pathlib import Path

import click

from recovery_pipelines import evidence
from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.drills.record import result_folders
from recovery_pipelines.errors import EvidenceError, RecoveryError
from recovery_pipelines.evidence import Entry, Report, keys, retention
from recovery_pipelines.evidence.bundle import write_bundle
from recovery_pipelines.evidence.chain import FOLDER_NAME
from recovery_pipelines.evidence.timestamp import stamp
from recovery_pipelines.plan import find_plan, load_plan

_VERIFIED, _BROKEN, _COULD_NOT_TELL = 0, 1, 2


def _month(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """YYYY-MM as the partition, YYYY-MM-01."""
    if value is None:
        return None
    if not re.fullmatch(r"\d{4}-(0[1-9]|1[0-2])", value):
        raise click.BadParameter(f"{value!r} is not a month: write YYYY-MM")
    return f"{value}-01"


_home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    default=lambda: load_plan(find_plan()).data_home,
    help="The data home, or an unpacked bundle; default: the plan's.",
)
_key_option = click.option(
    "--key",
    "key_path",
    type=click.Path(path_type=Path),
    help="A public key that signed; default: the one that lies beside the chain.",
)


@click.group()
def command() -> None:
    """Verify and hand over the signed, chained record of drills."""


@command.command()
@_home_option
@_key_option
@click.option("--head", help="SHA-256 of an entry that was published elsewhere.")
@click.option(
    "--from",
    "first",
    metavar="YYYY-MM",
    callback=_month,
    help="Look at the files from this month on.",
)
@click.option(
    "--to", "last", metavar="YYYY-MM", callback=_month, help="Look at the files up to this month."
)
def verify(
    home: Path, key_path: Path | None, head: str | None, first: str | None, last: str | None
) -> None:
    """Verify the chain and every drill's files. Exit 0 verified, 1 not, 2 could not tell.

    Needs nothing but the files and the public key.
    """
    if head is not None and not re.fullmatch(r"[0-9a-f]{64}", head):
        raise click.BadParameter("a head is 64 hexadecimal digits", param_hint="--head")
    months = (first or "0000-01-01", last or "9999-12-01") if first or last else None
    report = _verify(home, key_path, head, months)
    _show(report)
    if key_path is None:
        click.echo("the key lies beside the chain: compare its id with the one you were given")
    if head is None:
        click.echo("without --head, entries missing at the end cannot be seen")
    if report.broken:
        click.echo("NOT VERIFIED")
        sys.exit(_BROKEN)
    if not report.is_verified:
        click.echo("COULD NOT TELL")
        sys.exit(_COULD_NOT_TELL)
    click.echo(f"verified: {len(report.verified)} drills")


@command.command()
@_home_option
def head(home: Path) -> None:
    """Print number and SHA-256 of the newest entry, and the key in force. Exit 1: broken."""
    try:
        newest = evidence.read_chain(home).head
    except EvidenceError as error:
        click.echo(f"NOT VERIFIED: {error}", err=True)
        sys.exit(_BROKEN)
    except OSError as error:
        raise RecoveryError(f"there is no chain to read in {home}: {error}") from None
    click.echo(f"{newest.seq} {newest.digest} key {newest.key_id}")


@command.command()
@plan_option
def timestamp(plan_path: Path | None) -> None:
    """Have the head stamped by the plan's time stamp authority, as each drill does at its end."""
    plan = load_plan(plan_path or find_plan())
    authority = plan.evidence.timestamp_authority
    if authority is None:
        raise RecoveryError("the plan names no evidence.timestamp_authority (url and ca)")
    entry = stamp(plan.data_home, authority)
    about, at = entry.predicate["about"], entry.predicate["stamped_at"]
    click.echo(f"entry {entry.seq} {entry.digest}: entry {about['seq']} existed at {at}")


@command.command("rotate-key")
@_home_option
def rotate_key(home: Path) -> None:
    """Put a new key in force; an entry signed by the old key and the new says so."""
    try:
        entry = evidence.rotate_key(home)
    except OSError as error:
        raise RecoveryError(f"the key was not changed: {error}") from None
    click.echo(f"entry {entry.seq} {entry.digest}: key {entry.key_id} is in force")


@command.command()
@plan_option
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--trust-clock", is_flag=True, help="You looked at the clock, and it is right.")
def prune(plan_path: Path | None, dry_run: bool, trust_clock: bool) -> None:
    """Remove what is older than the plan keeps it; a signed tombstone names each sealed file.

    Exit 2, and nothing removed, if the clock is in doubt.
    """
    plan = load_plan(plan_path or find_plan())
    try:
        removal = retention.prune(plan, dry_run=dry_run, trust_clock=trust_clock)
    except OSError as error:
        raise RecoveryError(f"not all was removed; run it again: {error}") from None
    for line in removal.kept_wrong:
        click.echo(f"kept: {line}")
    if dry_run:
        for name in (*removal.sealed, *removal.others):
            click.echo(name)
    if removal.refused:
        message = f"nothing removed: {removal.refused}; if the clock is right: --trust-clock"
        raise RecoveryError(message)
    what = "would be removed" if dry_run else "removed"
    click.echo(f"{removal.files} files, {removal.bytes:,} bytes {what}")
    if removal.tombstone is not None:
        click.echo(f"tombstone: entry {removal.tombstone.seq} {removal.tombstone.digest}")


@command.command()
@_home_option
@click.option(
    "--from", "first", metavar="YYYY-MM", callback=_month, required=True, help="First month."
)
@click.option("--to", "last", metavar="YYYY-MM", callback=_month, required=True, help="Last month.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
def bundle(home: Path, first: str, last: str, output: Path) -> None:
    """Write a zip for an auditor. Exit 1, and no zip, if the evidence is broken; 2: cannot tell.

    The whole chain goes with the files of the drills of the given months: these files name files
    of the target.
    """
    report = _verify(home, None, None, (first, last), with_results=False)
    if report.chain is None or not report.is_verified:
        _show(report)
        click.echo("no bundle was written", err=True)
        sys.exit(_BROKEN if report.broken else _COULD_NOT_TELL)
    try:
        write_bundle(home, report.chain, report.verified, (first, last), output)
    except OSError as error:
        raise RecoveryError(f"the bundle was not written: {error}") from None
    entries = len(report.chain.entries)
    click.echo(f"{output}: {len(report.verified)} drills, {entries} entries")


def _verify(
    home: Path,
    key_path: Path | None,
    head: str | None,
    months: tuple[str, str] | None,
    with_results: bool = True,
) -> Report:
    path = key_path or home / FOLDER_NAME / keys.PUBLIC_NAME
    try:
        trusted = keys.read_public(path)
        results = result_folders(home) if with_results else []
    except OSError as error:
        raise RecoveryError(f"cannot be read: {error}") from None
    return evidence.verify(home, trusted, head=head, months=months, results=results)


def _show(report: Report) -> None:
    if report.chain is not None:
        newest = report.chain.head
        click.echo(f"chain: {len(report.chain.entries)} entries, head {newest.seq} {newest.digest}")
        click.echo(f"keys: {' '.join(report.chain.key_ids)}")
    for entry in report.verified:
        click.echo(
            f"entry {entry.seq}: {entry.folder} {report.verdicts[entry.seq]}: as sealed"
            f"{_without(report, entry)}"
        )
    for entry in report.removed:
        click.echo(f"entry {entry.seq}: {entry.folder}: removed, as a tombstone says")
    for entry in report.left_out:
        click.echo(f"entry {entry.seq}: {entry.folder}: another month, files not looked at")
    for line in report.broken:
        click.echo(f"NOT VERIFIED: {line}")
    for line in report.undecided:
        click.echo(f"COULD NOT TELL: {line}")


def _without(report: Report, entry: Entry) -> str:
    removed = report.chain.removed if report.chain else {}
    gone = [removed[name] for f in entry.files if (name := f"{entry.folder}/{f}") in removed]
    return f" ({len(gone)} files removed: entry {gone[-1]})" if gone else ""
