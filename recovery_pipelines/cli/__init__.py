"""The `recovery` command. Each group of commands is one module, imported only when it is used."""

import importlib
import sys
from typing import ClassVar

import click

from recovery_pipelines.errors import RecoveryError


class _LazyGroup(click.Group):
    """Loads a command's module on first use, so that `recovery manifest` starts fast."""

    modules: ClassVar[dict[str, str]] = {
        "analysis": "recovery_pipelines.cli.analysis",
        "audit": "recovery_pipelines.cli.audit",
        "drill": "recovery_pipelines.cli.drill",
        "evidence": "recovery_pipelines.cli.evidence",
        "manifest": "recovery_pipelines.cli.manifest",
        "monitor": "recovery_pipelines.cli.monitor",
        "notifications": "recovery_pipelines.cli.notifications",
        "plan": "recovery_pipelines.cli.plan",
        "report": "recovery_pipelines.cli.report",
        "signoff": "recovery_pipelines.cli.signoff",
        "ui": "recovery_pipelines.cli.ui",
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.modules:
            return None
        module = importlib.import_module(self.modules[cmd_name])
        command: click.Command = module.command
        return command


@click.group(cls=_LazyGroup)
def recovery() -> None:
    """Prove that backups restore."""


def main() -> None:
    """Entry point: errors meant for people are one message and exit code 2, never a traceback."""
    try:
        recovery(standalone_mode=True)
    except RecoveryError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
