"""What a manifest file holds: its columns, their meaning, and the file's own metadata.

One row per entry of a tree, the root included, sorted by `path_id`. The row groups split the
range of `path_id` into 2^k equal parts, so that two manifests can be compared part by part.
"""

import pyarrow as pa

SCHEMA_VERSION = 1
METADATA_KEY = b"recovery_pipelines.manifest"
"""Key of the file's own metadata: 32 hex digits of xxh3_128 over the JSON object that follows."""

TYPES = (
    (0o100000, "file"),
    (0o040000, "directory"),
    (0o120000, "symlink"),
    (0o010000, "fifo"),
    (0o140000, "socket"),
    (0o020000, "character_device"),
    (0o060000, "block_device"),
)
"""File type bits of st_mode and our names for them; a name's position is its code."""

DIRECTORY = [name for _, name in TYPES].index("directory")
"""The code of directories."""

SCHEMA = pa.schema(
    [
        pa.field("path", pa.binary(), nullable=False),
        pa.field("path_id", pa.uint64(), nullable=False),
        pa.field("type", pa.dictionary(pa.int8(), pa.string())),
        pa.field("size", pa.int64()),
        pa.field("mode", pa.uint16()),
        pa.field("uid", pa.uint32()),
        pa.field("gid", pa.uint32()),
        pa.field("mtime_ns", pa.int64()),
        pa.field("link_target", pa.binary()),
        pa.field("hard_link_group", pa.uint64()),
        pa.field("xattr_xxh3_128", pa.binary(16)),
        pa.field("device", pa.uint64()),
        pa.field("content_xxh3_128", pa.binary(16)),
        pa.field("error", pa.string()),
    ]
)
