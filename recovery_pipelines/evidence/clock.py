"""Whether the host's clock can be trusted enough to remove what is old.

`evidence/clock.json` is what the clock showed last time, beside the time since the host's start,
which nobody can set. It is a memory, not evidence.
"""

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from recovery_pipelines.evidence.files import replace_file

_NAME = "clock.json"
_LONGEST_SECONDS = 1e10
_TOLERANCE = timedelta(days=1)


@dataclass(frozen=True)
class Clock:
    """What the host's clocks show at one moment."""

    boot: str
    """Names the time between two starts of the host."""
    since_boot_seconds: float
    now: datetime
    """UTC."""

    @classmethod
    def read(cls) -> "Clock":
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        since_boot_seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
        return cls(boot, since_boot_seconds, datetime.now(UTC))


def remember(store: Path, clock: Clock) -> None:
    content = asdict(clock) | {"now": clock.now.isoformat()}
    replace_file(store / _NAME, json.dumps(content).encode(), 0o600)


def doubt(store: Path, clock: Clock, newest_seal: datetime) -> str:
    """Why the clock may be wrong by more than a day; empty if nothing says so.

    While the host runs, a jump is seen for sure. Over a restart it cannot be told from a host that
    was off: then this is in doubt once, and `remember` settles it if the clock still shows the
    same on the next day.
    """
    if clock.now < newest_seal - _TOLERANCE:
        return f"it is behind the newest seal ({newest_seal:%Y-%m-%d %H:%M}Z)"
    last = _last(store)
    if last is not None and last.boot == clock.boot:
        passed = timedelta(seconds=clock.since_boot_seconds - last.since_boot_seconds)
        jump = clock.now - last.now - passed
        if abs(jump) > _TOLERANCE:
            return f"it jumped by {jump.total_seconds() / 86400:+.1f} days since {last.now:%F}"
        return ""
    trace = max(newest_seal, last.now) if last is not None else newest_seal
    if clock.now - trace > _TOLERANCE:
        days = (clock.now - trace).total_seconds() / 86400
        return f"nothing tells what happened in the {days:.0f} days before the host was started"
    return ""


def is_jump(store: Path, clock: Clock) -> bool:
    """Whether the clock was set while the host ran: waiting does not make that right."""
    last = _last(store)
    return last is not None and last.boot == clock.boot


def _last(store: Path) -> Clock | None:
    try:
        content = json.loads((store / _NAME).read_bytes())
        boot, now = str(content["boot"]), datetime.fromisoformat(content["now"])
        since_boot = float(content["since_boot_seconds"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if now.tzinfo is None or not 0 <= since_boot < _LONGEST_SECONDS:
        return None
    return Clock(boot, since_boot, now)
