"""What is normal: the response times that were stored of a monitored service."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pandas as pd

from recovery_pipelines.monitoring.history import day_of, read_day
from recovery_pipelines.monitoring.rollup import aggregate, aggregates, quantile_of
from recovery_pipelines.plan.monitoring import Monitoring

DAYS = 7
FEWEST_REQUESTS = 60
_METRIC = "response_times"


@dataclass(frozen=True)
class Usual:
    """A service's response times of the last DAYS."""

    requests: int
    p95_seconds: float


def usual_response_times(home: Path, monitoring: Monitoring | None, now: float) -> dict[str, Usual]:
    """By service of the plan's monitoring: what is usual; without those of which too little is
    known, or only what our own probes took. `now` in seconds since 1970."""
    services = monitoring.services if monitoring else {}
    names = [name for name, service in services.items() if service.prometheus or service.access_log]
    if not names:
        return {}
    today = day_of(now)
    samples = read_day(home, today)
    running = aggregate(samples[samples["metric"] == _METRIC]).to_pandas()
    known = pd.concat(
        [
            aggregates(home, _METRIC, today - timedelta(days=DAYS), today - timedelta(days=1)),
            running,
        ]
    )
    found = {}
    for name in names:
        rows = known[known["entity"] == name]
        requests, p95 = int(rows["count"].sum()), quantile_of(rows, 0.95)
        if p95 is not None and requests >= FEWEST_REQUESTS:
            found[name] = Usual(requests, p95)
    return found
