"""When each file of a repository was last verified."""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pandas as pd

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import replacing

_NEVER = pd.Timestamp(0, tz="UTC")


class CoverageLedger:
    """One row per file that was ever verified, in a Parquet file: `path`, `verified_at` (UTC)."""

    def __init__(self, file: Path) -> None:
        """Raises RecoveryError if there is a file that is no ledger."""
        self._file = file
        self._verified_at = pd.Series(dtype="datetime64[us, UTC]")
        if file.exists():
            try:
                table = pd.read_parquet(file)
                self._verified_at = table.set_index("path")["verified_at"]
            except (OSError, ValueError, KeyError) as error:
                raise RecoveryError(
                    f"the coverage ledger {file} cannot be read ({error}): remove it, and all "
                    "files count as never verified"
                ) from None

    def stalest(self, paths: Sequence[bytes], count: int) -> list[bytes]:
        """`count` of `paths`: those never verified first, then those longest ago."""
        when = self._of(paths)
        order = when.reset_index(drop=True).sort_values(kind="stable").index[:count]
        return [paths[place] for place in order]

    def note(self, paths: Collection[bytes], now: datetime) -> None:
        """These were verified now."""
        index = pd.Index(list(paths), dtype=object)
        fresh = pd.Series(pd.Timestamp(now), index=index, dtype="datetime64[us, UTC]")
        kept = self._verified_at[~self._verified_at.index.isin(index)]
        self._verified_at = fresh if kept.empty else pd.concat([kept, fresh])

    def outside(self, paths: Sequence[bytes], days: int, now: datetime) -> tuple[int, int]:
        """How many of `paths` were never verified, and how many longer ago than `days`."""
        when = self._of(paths)
        never = when == _NEVER
        late = (when < pd.Timestamp(now) - timedelta(days=days)) & ~never
        return int(never.sum()), int(late.sum())

    def save(self) -> None:
        """Write the file whole or not at all."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        table = self._verified_at.rename_axis("path").rename("verified_at").reset_index()
        with replacing(self._file) as unfinished:
            table.to_parquet(unfinished, index=False)

    def _of(self, paths: Sequence[bytes]) -> "pd.Series[pd.Timestamp]":
        index = pd.Index(list(paths), dtype=object)
        return self._verified_at.reindex(index).astype("datetime64[us, UTC]").fillna(_NEVER)
