"""Health monitoring as sensors: each keeps its section measured and tells when health changes.

The measuring is done by a process of its own, because a sensor's ticks come up to 5 s late. A
sensor that is switched off lets its section's lease end; the process ends with the last lease.
"""

import json
import time
from collections.abc import Sequence

import dagster as dg

from recovery_pipelines.monitoring.alerts import Change, changes, conditions
from recovery_pipelines.monitoring.rollup import finished_days
from recovery_pipelines.monitoring.supervise import ensure_running, running_seconds, want
from recovery_pipelines.notifications import notify
from recovery_pipelines.orchestration.health import check_results
from recovery_pipelines.orchestration.jobs import AnyJob
from recovery_pipelines.plan import Plan
from recovery_pipelines.plan.monitoring import SECTIONS, Monitoring

_DAILY_LOOK_SECONDS = 600
_BLIND_AFTER_START_SECONDS = 30


def build(plan: Plan, monitoring: Monitoring, daily: AnyJob) -> list[dg.SensorDefinition]:
    """A sensor per section, at the plan's intervals, and one that starts the job `daily`.

    They run from the start if the plan says `enabled`.
    """
    return [
        *(_section_sensor(plan, monitoring, section) for section in SECTIONS),
        _daily_sensor(plan, monitoring, daily),
    ]


def _default_status(monitoring: Monitoring) -> dg.DefaultSensorStatus:
    is_on = monitoring.enabled
    return dg.DefaultSensorStatus.RUNNING if is_on else dg.DefaultSensorStatus.STOPPED


def _section_sensor(plan: Plan, monitoring: Monitoring, section: str) -> dg.SensorDefinition:
    interval_seconds = monitoring.interval_seconds(section)
    home = plan.data_home

    @dg.sensor(
        name=f"monitoring_{section}",
        minimum_interval_seconds=interval_seconds,
        default_status=_default_status(monitoring),
        description=f"Keeps {section} measured every {interval_seconds} s, tells of changes.",
    )
    def keep_measured(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        want(home, section)
        done = ensure_running(home, monitoring)
        if done or running_seconds(home) < 2 * interval_seconds + _BLIND_AFTER_START_SECONDS:
            # A collector that has just been started cannot have measured yet.
            return dg.SensorResult(skip_reason=f"the collector was {done or 'started just now'}")
        found = conditions(home, monitoring, section, time.time())
        told: dict[str, str] = json.loads(context.cursor or "{}")
        news = changes(found, told)
        tell(plan, monitoring, section, news)
        known = {condition.name: condition.states[-1] for condition in found}
        cursor = told | known | {change.name: change.now for change in news}
        for condition in found:
            # Flapping stays told until it ends.
            if told.get(condition.name) == "flapping" and not _is_news(condition.name, news):
                cursor[condition.name] = "flapping"
        results = check_results(plan, section, found) if news or not told else []
        return dg.SensorResult(
            skip_reason=f"{len(found)} looked at, {len(news)} changed",
            cursor=json.dumps(cursor),
            asset_events=results,
        )

    return keep_measured


def _is_news(name: str, news: Sequence[Change]) -> bool:
    return any(change.name == name for change in news)


def tell(plan: Plan, monitoring: Monitoring, section: str, news: Sequence[Change]) -> None:
    """One message to the teams of the plan about everything that changed."""
    if not news or not monitoring.notification:
        return
    worst = [change for change in news if change.now != "ok"]
    names = ", ".join(f"{change.name} {change.now}" for change in worst or news)
    details = {
        "section": section,
        "changes": [
            {"name": change.name, "from": change.before, "to": change.now, "found": change.detail}
            for change in news
        ],
    }
    notify(plan, monitoring.notification, f"monitoring: {names}", details)


def _daily_sensor(plan: Plan, monitoring: Monitoring, daily: AnyJob) -> dg.SensorDefinition:
    @dg.sensor(
        name="monitoring_daily",
        job=daily,
        minimum_interval_seconds=_DAILY_LOOK_SECONDS,
        default_status=_default_status(monitoring),
        description="Rolls up every finished day, and removes what is too old.",
    )
    def roll_up_finished_days(
        context: dg.SensorEvaluationContext,
    ) -> dg.SensorResult | dg.SkipReason:
        now = time.time()
        days = finished_days(plan.data_home, now)
        # A day whose run failed is still there, and is tried again in the next hour.
        requests = [
            dg.RunRequest(run_key=f"{day} {now // 3600:.0f}", partition_key=str(day))
            for day in days
        ]
        return dg.SensorResult(run_requests=requests) if days else dg.SkipReason("no finished day")

    return roll_up_finished_days
