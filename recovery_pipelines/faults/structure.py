"""Damage to the shape of a tree: entries lost, moved, added, or of another nature.

The times of the directories around are put back: what is gone shows by itself alone.
"""

import stat

from recovery_pipelines.faults import edit, kind
from recovery_pipelines.faults.base import Family
from recovery_pipelines.faults.kind import Damage, Kind, Place
from recovery_pipelines.sandbox import Tree

_ABSENT = "absent"


def describe(tree: Tree, path: bytes) -> str:
    """What an entry is, in a few words."""
    if not tree.exists(path):
        return _ABSENT
    found = tree.stat(path)
    if stat.S_ISLNK(found.st_mode):
        return f"symlink to {tree.readlink(path)!r}"
    if stat.S_ISDIR(found.st_mode):
        return f"directory of {len(tree.listdir(path))} entries"
    return f"file of {found.st_size} bytes with {found.st_nlink} links"


def copy_metadata(tree: Tree, source: bytes, target: bytes) -> None:
    """Owner, mode, xattrs and mtime of `source`, as far as they apply to `target`'s type."""
    held, found = tree.stat(source), tree.stat(target)
    if (held.st_uid, held.st_gid) != (found.st_uid, found.st_gid):
        tree.chown(target, held.st_uid, held.st_gid)
    if not (stat.S_ISLNK(held.st_mode) or stat.S_ISLNK(found.st_mode)):
        for name in tree.listxattr(source):
            tree.setxattr(target, name, tree.getxattr(source, name))
        tree.chmod(target, stat.S_IMODE(held.st_mode))
    tree.utime_ns(target, held.st_atime_ns, held.st_mtime_ns)


def _replace(place: Place, make: bytes, what: str) -> Damage:
    """The new entry `make` (beside the old one) takes the place of the old one."""
    tree, before = place.tree, describe(place.tree, place.path)
    copy_metadata(tree, place.path, make)
    tree.rmtree(place.path)
    tree.rename(make, place.path)
    return Damage(what, before, describe(tree, place.path))


def delete(place: Place) -> Damage:
    """An entry is gone, with all below it."""
    before = describe(place.tree, place.path)
    with edit.quiet(place.tree, edit.parent(place.path)):
        place.tree.rmtree(place.path)
    return Damage("deleted", before, describe(place.tree, place.path))


def delete_directory(place: Place) -> Damage | None:
    """A directory that holds something; never more than a quarter of the tree."""
    if place.entry.holds_damage:
        return None
    below = sum(entry.path.startswith(place.path + b"/") for entry in place.entries)
    return delete(place) if 0 < below <= max(1, len(place.entries) // 4) else None


def empty_directory_lost(place: Place) -> Damage | None:
    """An empty directory is gone, as tools lose it that know only files."""
    return None if place.tree.listdir(place.path) else delete(place)


def rename(suffix: bytes) -> kind.Damager:
    """An entry has another name."""

    def damage(place: Place) -> Damage:
        before = describe(place.tree, place.path)
        target = edit.free_name(place.tree, edit.with_suffix(place.path, suffix))
        with edit.quiet(place.tree, edit.parent(place.path)):
            place.tree.rename(place.path, target)
        after = describe(place.tree, place.path)
        return Damage(f"renamed to {target!r}", before, after, also=(target,))

    return damage


def unexpected_file(place: Place) -> Damage:
    """A file that nobody wrote appears in a directory."""
    tree = place.tree
    path = edit.free_name(tree, edit.below(place.path, b"unexpected.tmp"))
    with edit.quiet(tree, place.path):
        tree.write(path, place.rng.randbytes(place.rng.randrange(1, 5000)))
        tree.utime_ns(path, place.entry.mtime_ns, place.entry.mtime_ns)
    return Damage("a new file", _ABSENT, describe(tree, path), path)


def symlink_retarget(place: Place) -> Damage:
    """A symbolic link leads elsewhere."""
    tree = place.tree
    target = edit.with_suffix(tree.readlink(place.path), b".old")
    with edit.quiet(tree, edit.parent(place.path)):
        new = edit.free_name(tree, edit.with_suffix(place.path, b".new"))
        tree.symlink(target, new)
        return _replace(place, new, "retargeted")


def hard_link_break(place: Place) -> Damage | None:
    """One of several names of a file becomes a file of its own with equal content."""
    if sum(entry.inode == place.entry.inode for entry in place.entries) < 2:
        return None
    tree = place.tree
    with edit.quiet(tree, edit.parent(place.path)):
        new = edit.free_name(tree, edit.with_suffix(place.path, b".new"))
        tree.write(new, b"")
        edit.rewrite(tree, new, edit.read_chunks(tree, place.path))
        return _replace(place, new, "a copy instead of a link")


def type_change(place: Place) -> Damage:
    """A file becomes an empty directory; a symbolic link a file that holds its target."""
    tree = place.tree
    with edit.quiet(tree, edit.parent(place.path)):
        new = edit.free_name(tree, edit.with_suffix(place.path, b".new"))
        if place.entry.is_symlink:
            tree.write(new, tree.readlink(place.path))
        else:
            tree.mkdir(new)
        return _replace(place, new, "another type")


def swap_files(place: Place) -> Damage | None:
    """Two files of different content change names."""
    tree = place.tree
    for other in place.siblings():
        if edit.same_content(tree, place.path, other.path):
            continue
        with (
            edit.quiet(tree, edit.parent(place.path)),
            edit.quiet(tree, edit.parent(other.path)),
        ):
            between = edit.free_name(tree, edit.with_suffix(place.path, b".swap"))
            tree.rename(place.path, between)
            tree.rename(other.path, place.path)
            tree.rename(between, other.path)
        return Damage(
            f"swapped with {other.path!r}",
            f"file of {place.size} bytes",
            describe(tree, place.path),
            also=(other.path,),
        )
    return None


def _structure(
    name: str, what: str, caught_by: str, choose: kind.Chooser, damage: kind.Damager
) -> Kind:
    return Kind(name, Family.STRUCTURE, what, (caught_by,), choose, damage)


_FILES = "all_files_recovered"
_SHAPE = "directory_structure_intact"

KINDS = (
    _structure("delete_file", "a file is gone", _FILES, kind.any_file, delete),
    _structure(
        "delete_directory",
        "a directory is gone with all it holds (at most a quarter of the tree)",
        _FILES,
        kind.directories,
        delete_directory,
    ),
    _structure(
        "rename_file", "a file has another name", _FILES, kind.any_file, rename(b".renamed")
    ),
    _structure(
        "unexpected_file",
        "a file that nobody wrote appears",
        _FILES,
        kind.directories,
        unexpected_file,
    ),
    _structure(
        "symlink_retarget",
        "a symbolic link leads elsewhere",
        _SHAPE,
        kind.symlinks,
        symlink_retarget,
    ),
    _structure(
        "hard_link_break",
        "one name of a hard-linked file becomes a copy",
        _SHAPE,
        kind.linked_files,
        hard_link_break,
    ),
    _structure(
        "type_change",
        "a file becomes a directory, or a symbolic link a file",
        _SHAPE,
        kind.files_or_symlinks,
        type_change,
    ),
    _structure(
        "empty_directory_lost",
        "an empty directory is gone",
        _SHAPE,
        kind.directories,
        empty_directory_lost,
    ),
    _structure(
        "swap_files",
        "two files of different content change names",
        "checksums_match",
        kind.files,
        swap_files,
    ),
)
