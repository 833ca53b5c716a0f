"""A drill declared in YAML, in a user's own `defs/` folder."""

from typing import Literal

import dagster as dg
import yaml
from pydantic import Field

from recovery_pipelines.build import stage_assets
from recovery_pipelines.drills.data_recovery import require_known
from recovery_pipelines.orchestration.jobs import drill_job, drill_schedule
from recovery_pipelines.orchestration.stages import RESOURCES
from recovery_pipelines.plan import Plan, parse_plan
from recovery_pipelines.sensors import drill_failure


class RecoveryDrill(dg.Component, dg.Model, dg.Resolvable):
    """Back up, damage, restore and verify a target, every month."""

    target: str = Field(description="Name of what must be recoverable; part of the drill's name.")
    path: str | None = Field(default=None, description="A real tree; it is copied, never touched.")
    dataset_size: str | None = Field(default=None, description="Test data instead, such as 64MB.")
    scenario: Literal["corruption_recovery", "incremental_recovery"] = "corruption_recovery"
    engine: str = Field(default="tar", description="The backup tool: tar, restic, …")
    data_home: str = Field(default="data", description="Folder for everything that drills write.")
    schedule: str = Field(default="monthly", description="monthly, manual, or five cron fields.")
    timeout: int = Field(default=3600, description="Seconds that the drill may take.")

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The drill's assets and checks, its job, schedule and failure sensor."""
        plan = self._plan(context)
        (spec,) = plan.drills()
        require_known(spec)
        job = drill_job(spec.name, [spec], spec.scenario.description)
        cron_schedule = spec.automation.cron_schedule
        return dg.Definitions(
            assets=stage_assets(spec),
            resources=RESOURCES,
            jobs=[job],
            schedules=[drill_schedule(job, [spec], cron_schedule)] if cron_schedule else [],
            sensors=[drill_failure.build([spec], f"{spec.name}_failure")],
        )

    def _plan(self, context: dg.ComponentLoadContext) -> Plan:
        """A plan of one drill; the plan's own validation gives the error messages."""
        source = {"path": self.path} if self.path else {"dataset": {"size": self.dataset_size}}
        content = {
            "data_home": self.data_home,
            "targets": {self.target: {**source, "engines": [self.engine]}},
            "test_framework": {
                "test_scenarios": {
                    "data_recovery": {
                        "scenarios": [{"name": self.scenario}],
                        "automation": {"schedule": self.schedule},
                    }
                },
                "test_execution": {"execution_controls": {"timeout": self.timeout}},
            },
        }
        text = yaml.safe_dump(content)
        return parse_plan(text, name=f"RecoveryDrill {self.target}", folder=context.project_root)
