"""`recovery notifications`: what became of each message, and a message to try the channels."""

import sys
from pathlib import Path

import click
import pandas as pd

from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.notifications import notify, receipts, resend
from recovery_pipelines.plan import find_plan, load_plan

_NEWEST_SENT = 20


@click.group(name="notifications", invoke_without_command=True)
@plan_option
@click.pass_context
def command(context: click.Context, plan_path: Path | None) -> None:
    """Show what is pending or failed, and what was sent last."""
    context.obj = plan_path
    if context.invoked_subcommand is not None:
        return
    table = receipts(load_plan(plan_path or find_plan()).data_home)
    sent = table[table["state"] == "sent"]
    click.echo(
        _text(table[~table["state"].isin(["sent", "resent"])], "Nothing is pending or failed.")
    )
    click.echo()
    click.echo(_text(sent.tail(_NEWEST_SENT), "Nothing was sent yet."))
    counts = ", ".join(
        f"{number} {state}" for state, number in table["state"].value_counts().items()
    )
    click.echo(f"\n{counts or 'no messages'}")


@command.command()
@click.argument("team")
@click.pass_obj
def test(plan_path: Path | None, team: str) -> None:
    """Send a message to TEAM. Exit 0 if everyone got it, 1 if not."""
    plan = load_plan(plan_path or find_plan())
    message_id = notify(plan, [team], f"Test message to {team}", {"reason": "somebody asked"})
    table = receipts(plan.data_home)
    table = table[table["message_id"] == message_id]
    click.echo(_text(table, "The message could not be kept: see the errors above."))
    sys.exit(0 if len(table) and (table["state"] == "sent").all() else 1)


@command.command(name="resend")
@click.argument("message_id", required=False)
@click.pass_obj
def send_again(plan_path: Path | None, message_id: str | None) -> None:
    """Send what was given up on anew, all of it or MESSAGE_ID. Exit 0 if everyone got it."""
    plan = load_plan(plan_path or find_plan())
    made = resend(plan, message_id)
    table = receipts(plan.data_home)
    table = table[table["message_id"].isin(made)]
    click.echo(_text(table, "There is nothing to send again."))
    sys.exit(0 if (table["state"] == "sent").all() else 1)


def _text(table: pd.DataFrame, empty: str) -> str:
    hidden = (
        ["last_attempt_at"]
        if (table["state"] == "failed").any()
        else ["message_id", "last_attempt_at"]
    )
    shown = table.drop(columns=hidden)
    shown["queued_at"] = shown["queued_at"].dt.strftime("%Y-%m-%d %H:%M")
    return str(shown.to_markdown(index=False, tablefmt="simple")) if len(shown) else empty
