"""`recovery audit`: does a repository of your own bring the data back?"""

from pathlib import Path

import click

from recovery_pipelines.cli import drill
from recovery_pipelines.cli.plan import plan_option
from recovery_pipelines.orchestration.partitions import current_month


@click.command(name="audit")
@plan_option
@click.argument("target", required=False)
@click.option("--month", default=current_month, help="Partition, YYYY-MM-01; default: now.")
@click.pass_context
def command(ctx: click.Context, plan_path: Path | None, target: str | None, month: str) -> None:
    """Audit the repository of TARGET, or every one in the plan.

    Exit 0 PASS, 1 FAIL or INVALID, 2 ERROR, 3 UNVERIFIED or STALE.
    """
    ctx.invoke(
        drill.command,
        plan_path=plan_path,
        scenario="repository_audit",
        engine=None,
        target=target,
        month=month,
    )
