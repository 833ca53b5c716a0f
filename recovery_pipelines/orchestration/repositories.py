"""The audited repositories as Dagster sees them: assets that others write."""

import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg

from recovery_pipelines.drills.repository_audit import list_backups
from recovery_pipelines.orchestration.controls import asset_key
from recovery_pipelines.plan import DrillSpec

_TIMEOUT_SECONDS = 50.0
AGE = "newest_age_seconds"


def repository_key(spec: DrillSpec) -> dg.AssetKey:
    return asset_key(spec.plan, "repositories", spec.target_name)


def look_into(spec: DrillSpec) -> Mapping[str, str | int | float]:
    """What the repository holds now, as metadata. RecoveryError if that cannot be told."""
    with tempfile.TemporaryDirectory(prefix="recovery-observe-") as work:
        backups = list_backups(spec, Path(work), _TIMEOUT_SECONDS)
    if not backups:
        return {"backups": 0}
    newest = backups[-1]
    return {
        "backups": len(backups),
        "newest": newest.name,
        "newest_id": newest.backup_id,
        "newest_at": newest.created_at.isoformat(),
        AGE: (datetime.now(UTC) - newest.created_at).total_seconds(),
    }
