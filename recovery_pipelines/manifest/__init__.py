"""The truth about a tree at one instant, and the differences between two such truths.

`capture` writes a manifest (one row per entry, `schema.SCHEMA`), `compare` says what differs
between two, `write_shard` and `merge` do so in pieces, `cut` and `take_part` make ranges of paths,
`subset` keeps the rows of some paths, `read` loads one as a table. Only `capture` is imported at
once: it starts its workers before pyarrow is loaded.
"""

from typing import TYPE_CHECKING, Any

from recovery_pipelines.manifest.capture import Progress, capture
from recovery_pipelines.manifest.summary import Summary

if TYPE_CHECKING:
    from recovery_pipelines.manifest.comparison import Comparison, compare
    from recovery_pipelines.manifest.ranges import Part, PathRange, cut, sizes_of, take_part
    from recovery_pipelines.manifest.shards import merge, write_part, write_shard
    from recovery_pipelines.manifest.store import read, read_info, subset

__all__ = [
    "Comparison",
    "Part",
    "PathRange",
    "Progress",
    "Summary",
    "capture",
    "compare",
    "cut",
    "merge",
    "read",
    "read_info",
    "sizes_of",
    "subset",
    "take_part",
    "write_part",
    "write_shard",
]


def __getattr__(name: str) -> Any:
    if name in ("Comparison", "compare"):
        from recovery_pipelines.manifest import comparison

        return getattr(comparison, name)
    if name in ("Part", "PathRange", "cut", "sizes_of", "take_part"):
        from recovery_pipelines.manifest import ranges

        return getattr(ranges, name)
    if name in ("merge", "write_part", "write_shard"):
        from recovery_pipelines.manifest import shards

        return getattr(shards, name)
    if name in ("read", "read_info", "subset"):
        from recovery_pipelines.manifest import store

        return getattr(store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
