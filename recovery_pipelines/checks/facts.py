"""What owners and applications can do with the data, recorded before the damage.

The facts are a Parquet file with one row per regular file:

| column              | type   | meaning                                                         |
|---------------------|--------|-----------------------------------------------------------------|
| `path`              | binary | relative to the tree's root                                     |
| `uid`, `gid`        | uint32 | the owning user and group                                       |
| `owner_access`      | string | `read`, `not tested`, or why the owning user could not read it  |
| `application`       | string | `sqlite`, `parquet` or `gzip` by its content; else null         |
| `application_facts` | string | what the application read from it; null if it could not         |
| `application_error` | string | why it, or we, could not read it; else null                     |
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recovery_pipelines import manifest as manifests
from recovery_pipelines.checks.base import files_of
from recovery_pipelines.checks.owner_access import READ, read_as_owners
from recovery_pipelines.checks.readers import NO_APPLICATION, look_at_all
from recovery_pipelines.sandbox import Tree

FACTS_SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("uid", pa.uint32(), nullable=False),
        pa.field("gid", pa.uint32(), nullable=False),
        pa.field("owner_access", pa.string(), nullable=False),
        pa.field("application", pa.string()),
        pa.field("application_facts", pa.string()),
        pa.field("application_error", pa.string()),
    ]
)


def capture_facts(tree: Tree, manifest: Path, output: Path) -> pa.Table:
    """Record what can be done with each regular file of `tree`, as listed in its `manifest`.

    Writes the facts to `output` and returns them. A file that vanishes meanwhile is recorded with
    its error.
    """
    files = files_of(manifests.read(manifest, ["path", "type", "uid", "gid"]))
    paths = files["path"].to_pylist()
    accesses = read_as_owners(tree, files)
    # Files that are of no application by what their owner read need no second look.
    places = [
        place
        for place, access in enumerate(accesses)
        if access.answer != READ or access.application is not None
    ]
    looks = [NO_APPLICATION] * len(paths)
    for place, look in zip(
        places, look_at_all(tree, [paths[place] for place in places]), strict=True
    ):
        looks[place] = look
    facts = pa.table(
        [
            files["path"],
            files["uid"],
            files["gid"],
            pa.array([access.answer for access in accesses], pa.string()),
            *(pa.array([look[column] for look in looks], pa.string()) for column in range(3)),
        ],
        schema=FACTS_SCHEMA,
    )
    pq.write_table(facts, output)
    return facts


def read_facts(path: Path) -> pa.Table:
    """The facts that `capture_facts` wrote."""
    return pq.read_table(path, schema=FACTS_SCHEMA)
