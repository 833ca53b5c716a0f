"""What two manifests can differ in, and what may be left out of a comparison."""

KINDS = (
    "missing",
    "unexpected",
    "type",
    "content",
    "mode",
    "owner",
    "mtime",
    "link_target",
    "hard_link_group",
    "xattr",
    "device",
)
"""In the order in which they are reported."""

NEVER_IGNORED = ("missing", "type", "content")
"""Without these nothing would be verified."""

IGNORABLE = tuple(kind for kind in KINDS if kind not in NEVER_IGNORED)
