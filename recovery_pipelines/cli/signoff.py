"""`recovery signoff`: a named person records what was verified by hand."""

from pathlib import Path
from typing import get_args

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.drills.failure import tell_sign_off
from recovery_pipelines.errors import EvidenceError, RecoveryError
from recovery_pipelines.evidence.signoff import (
    Result,
    Role,
    Standing,
    sign_off,
    standings,
)
from recovery_pipelines.plan import find_plan, load_plan
from recovery_pipelines.reporting.publish import distribute, write_reports

_WIDTH_WITHOUT_TERMINAL = 160


@click.command(name="signoff")
@plan_option
@click.argument("drill", required=False)
@click.option("--list", "lists", is_flag=True, help="Show what waits for a sign-off, and the rest.")
@click.option("--month", help="The drill's month, YYYY-MM-01; default: the newest that was sealed.")
@click.option("--run", "run_id", help="The drill's run; default: the newest of the month.")
@click.option("--check", help="The manual check that was made.")
@click.option("--result", type=click.Choice(get_args(Result)))
@click.option("--by", help="The person who made it.")
@click.option("--role", type=click.Choice(get_args(Role)), default="reviewer", show_default=True)
@click.option("--test-results", default="", help="What was done and seen.")
@click.option("--issues-found", default="", help="What was wrong, or `none`.")
@click.option("--resolutions", default="", help="What was done about it, or `none`.")
def command(
    plan_path: Path | None,
    drill: str | None,
    lists: bool,
    month: str | None,
    run_id: str | None,
    check: str | None,
    result: Result | None,
    by: str | None,
    role: Role,
    **documentation: str,
) -> None:
    """Sign a manual check of DRILL. The signature is an entry of the evidence and stays.

    A drill whose plan asks for manual checks is UNVERIFIED until each is signed with `pass`; a
    `fail` makes it FAIL. Texts become part of the evidence: no secrets, no data of the target.
    """
    plan = load_plan(plan_path or find_plan())
    home = plan.data_home
    if lists or drill is None:
        _list([s for s in standings(home) if s.required_checks and drill in (None, _drill(s))])
        return
    if check is None or result is None or by is None:
        raise click.UsageError("a sign-off needs --check, --result and --by; or use --list")
    standing = _find(home, drill, month, run_id)
    try:
        signed = sign_off(
            home,
            standing.drill,
            check=check,
            result=result,
            by=by,
            role=role,
            documentation={name: text for name, text in documentation.items() if text},
        )
    except OSError as error:
        raise RecoveryError(f"nothing was signed: {error}") from None
    entry = signed.sign_offs[-1].entry
    click.echo(f"entry {entry.seq} {entry.digest}: {check} {result} by {by} ({role})")
    waits = f"; waits for {', '.join(signed.waiting)}" if signed.waiting else ""
    click.echo(f"{signed.drill.folder}: {signed.verdict}{waits}")
    tell_sign_off(plan, signed)
    try:
        publication = write_reports(home, plan, signed.drill.month)
        distribute(home, plan, publication)
    except (OSError, RecoveryError) as error:
        click.echo(f"signed, but the reports are as before: {error}; `recovery report`", err=True)
        return
    for file in publication.files:
        click.echo(file.path)


def _find(home: Path, drill: str, month: str | None, run_id: str | None) -> Standing:
    """The newest sealed drill that the arguments name."""
    every = standings(home)
    found = [
        standing
        for standing in every
        if _drill(standing) == drill
        and month in (None, standing.drill.month)
        and run_id in (None, standing.drill.predicate["drill"]["run_id"])
    ]
    if not found:
        names = ", ".join(dict.fromkeys(map(_drill, every))) or "none"
        wanted = " ".join(word for word in (drill, month, run_id) if word)
        raise EvidenceError(f"no sealed drill is {wanted}; sealed: {names}")
    return max(found, key=lambda standing: (standing.drill.month, standing.drill.seq))


def _list(found: list[Standing]) -> None:
    table = Table("drill", "month", "run", "automated", "with sign-offs", "manual checks")
    for standing in found:
        table.add_row(
            _drill(standing),
            standing.drill.month,
            str(standing.drill.predicate["drill"]["run_id"])[:8],
            standing.automated_verdict,
            standing.verdict,
            "\n".join(f"{check.name}: {escape(check.found)}" for check in standing.checks),
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_WITHOUT_TERMINAL)
    console.print(table)
    waiting = [standing for standing in found if standing.waiting]
    console.print(f"{len(found)} drills ask for sign-offs; {len(waiting)} wait")


def _drill(standing: Standing) -> str:
    return str(standing.drill.predicate["drill"]["drill"])
