"""Publishing: what was restored and verified in staging takes its place in the live tree.

Files and links are moved by rename, with all that is known about them; directories are made or
put right in place. Nothing here verifies: the caller captures the live tree again afterwards.
What an ordinary user may not set (another owner) stays as it is, and shows there.
"""

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from recovery_pipelines import manifest
from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.manifest import Comparison
from recovery_pipelines.sandbox import Tree


def publish(staging: Tree, live: Tree, expected: Path, comparison: Comparison | None) -> None:
    """Make `live` what manifest `expected` says, with entries taken out of `staging`.

    Without `comparison` everything in `live` is replaced, its root staying the same directory.
    With one (of `expected` against `live`) only what differs is: the `paths_to_restore` are
    taken from staging, and what is unexpected is removed. Raises RecoveryError, with nothing
    changed, if one of them is not in staging.
    """
    directories = _directories(expected)
    if comparison is None:
        _publish_all(staging, live, directories[b""])
    else:
        _publish_differences(staging, live, expected, comparison, directories)


def paths_to_restore(expected: Path, comparison: Comparison) -> list[bytes]:
    """The paths of `expected` that must come back, sorted.

    These differ or could not be examined. Hard-link groups are whole, so that links survive. The
    root is one only if its extended attributes must come back: the rest of it the manifest holds.
    """
    differences = comparison.differences
    wrong = set(differences.filter(pc.field("kind") != "unexpected")["path"].to_pylist())
    wrong -= {b""} - _with_wrong_xattrs(comparison)
    wrong |= set(comparison.undecided_entries["path"].to_pylist())
    rows = manifest.read(expected, ["path", "hard_link_group"])
    groups = dict(zip(rows["path"].to_pylist(), rows["hard_link_group"].to_pylist(), strict=True))
    restored = groups.keys() & wrong
    torn_groups = {groups[path] for path in restored} - {None, 0}
    restored |= {path for path, group in groups.items() if group in torn_groups}
    return sorted(restored)


@dataclass(frozen=True)
class _Directory:
    """What a manifest says about a directory."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int

    def apply(self, live: Tree, path: bytes) -> None:
        found = live.stat(path)
        if (found.st_uid, found.st_gid) != (self.uid, self.gid):
            with suppress(PermissionError):
                live.chown(path, self.uid, self.gid)
        live.chmod(path, self.mode)
        live.utime_ns(path, found.st_atime_ns, self.mtime_ns)


def _directories(expected: Path) -> dict[bytes, _Directory]:
    rows = manifest.read(expected, ["path", "type", "mode", "uid", "gid", "mtime_ns"])
    columns = rows.filter(pc.field("type") == "directory").drop_columns("type").to_pydict()
    return {path: _Directory(*known) for path, *known in zip(*columns.values(), strict=True)}


def _publish_all(staging: Tree, live: Tree, root: _Directory) -> None:
    _open_up(staging, b"")
    live.clear()
    for name in staging.listdir():
        found = staging.stat(name)
        if stat.S_ISDIR(found.st_mode):
            _open_up(staging, name)
        staging.rename(name, name, to=live)
        if stat.S_ISDIR(found.st_mode):
            live.chmod(name, stat.S_IMODE(found.st_mode))
            live.utime_ns(name, found.st_atime_ns, found.st_mtime_ns)
    _copy_xattrs(staging, live, b"")
    root.apply(live, b"")


def _publish_differences(
    staging: Tree,
    live: Tree,
    expected: Path,
    comparison: Comparison,
    directories: dict[bytes, _Directory],
) -> None:
    restored = paths_to_restore(expected, comparison)
    wrong_xattrs = _with_wrong_xattrs(comparison)
    differing = set(comparison.differences["path"].to_pylist())
    # What is unexpected below something unexpected, or below a directory that should be
    # something else, goes with that.
    unexpected = [path for path in differing - _all_paths(expected) if _parent(path) in directories]
    involved = {b"", *restored}.union(*map(_ancestors, [*restored, *unexpected]))
    touched = sorted(involved & directories.keys(), key=_depth)

    for path in touched:
        if staging.exists(path):
            _open_up(staging, path)
    _require_staged(staging, restored)
    for path in touched:
        _make_directory(live, path)
    for path in unexpected:
        live.rmtree(path)
    for path in restored:
        if path not in directories:
            if _is_directory(live, path):
                live.rmtree(path)
            staging.rename(path, path, to=live)
    for path in reversed(touched):
        if path in wrong_xattrs:
            _copy_xattrs(staging, live, path)
        directories[path].apply(live, path)


def _with_wrong_xattrs(comparison: Comparison) -> set[bytes]:
    """Entries whose extended attributes are wrong, absent or unknown."""
    kinds = pc.field("kind").isin(["missing", "type", "xattr"])
    wrong = set(comparison.differences.filter(kinds)["path"].to_pylist())
    return wrong | set(comparison.undecided_entries["path"].to_pylist())


def _require_staged(staging: Tree, paths: Collection[bytes]) -> None:
    absent = [path for path in paths if not staging.exists(path)]
    if absent:
        raise RecoveryError(
            f"{len(absent)} entries that must come back are not in {staging.path}, for example "
            f"{absent[0]!r}: nothing was published; restore `paths_to_restore`"
        )


def _make_directory(live: Tree, path: bytes) -> None:
    if live.exists(path):
        if _is_directory(live, path):
            _open_up(live, path)
            return
        live.unlink(path)
    live.mkdir(path, 0o700)


def _open_up(tree: Tree, path: bytes) -> None:
    """Let us work in a directory of our own whose mode forbids it."""
    mode = stat.S_IMODE(tree.stat(path).st_mode)
    if os.geteuid() != 0 and mode & stat.S_IRWXU != stat.S_IRWXU:
        tree.chmod(path, mode | stat.S_IRWXU)


def _copy_xattrs(staging: Tree, live: Tree, path: bytes) -> None:
    wanted = {name: staging.getxattr(path, name) for name in staging.listxattr(path)}
    found = {name: live.getxattr(path, name) for name in live.listxattr(path)}
    for name in found.keys() - wanted.keys():
        live.removexattr(path, name)
    for name, value in wanted.items():
        if found.get(name) != value:
            live.setxattr(path, name, value)


def _is_directory(tree: Tree, path: bytes) -> bool:
    return tree.exists(path) and stat.S_ISDIR(tree.stat(path).st_mode)


def _all_paths(expected: Path) -> set[bytes]:
    return set(manifest.read(expected, ["path"])["path"].to_pylist())


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0]


def _ancestors(path: bytes) -> set[bytes]:
    parts = path.split(b"/")
    return {b"/".join(parts[:count]) for count in range(len(parts))}


def _depth(path: bytes) -> int:
    return path.count(b"/") + (path != b"")
