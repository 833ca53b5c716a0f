"""Damage to what is known about entries: modes, owners, xattrs, ACLs, times."""

import os
import stat
import struct

from recovery_pipelines.faults import edit, kind
from recovery_pipelines.faults.base import Family
from recovery_pipelines.faults.kind import Damage, Kind, Place

ACL_XATTRS = ("system.posix_acl_access", "system.posix_acl_default")
_NAMED_ACL_TAGS = (0x02, 0x08)  # a named user, a named group (linux/posix_acl_xattr.h)
_ACL_HEADER_BYTES = 4
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_WRITE = 0x02
_MTIME_STEPS_NS = (1_000, 10**9, 86_400 * 10**9)


def _mode(place: Place) -> str:
    return oct(stat.S_IMODE(place.tree.stat(place.path).st_mode))


def _owner(place: Place) -> str:
    found = place.tree.stat(place.path)
    return f"{found.st_uid}:{found.st_gid}"


def chmod(place: Place) -> Damage:
    """One permission bit of the group or of others is toggled."""
    before = _mode(place)
    bit = place.rng.choice((0o040, 0o020, 0o010, 0o004, 0o002, 0o001))
    place.tree.chmod(place.path, stat.S_IMODE(place.entry.mode) ^ bit)
    return Damage(f"bit {oct(bit)} toggled", before, _mode(place))


def owner_access_lost(place: Place) -> Damage | None:
    """The owner may not read any more. Root's business: others could not even verify it."""
    if os.geteuid() != 0 or not place.entry.mode & stat.S_IRUSR:
        return None
    before = _mode(place)
    place.tree.chmod(place.path, stat.S_IMODE(place.entry.mode) & ~0o700)
    return Damage("the owner's permissions are gone", before, _mode(place))


def chown(place: Place) -> Damage | None:
    """Another user or group owns it (only root can do that)."""
    if os.geteuid() != 0:
        return None
    before = _owner(place)
    found = place.tree.stat(place.path)
    user, group = place.rng.choice(((1, 0), (0, 1), (1, 1)))
    place.tree.chown(place.path, found.st_uid + user, found.st_gid + group)
    if not place.entry.is_symlink:  # the kernel clears set-uid and set-gid on the way
        place.tree.chmod(place.path, stat.S_IMODE(place.entry.mode))
    return Damage("another owner", before, _owner(place))


def setgid_lost(place: Place) -> Damage | None:
    """A directory no longer hands its group on to new files."""
    if not place.entry.mode & stat.S_ISGID:
        return None
    before = _mode(place)
    place.tree.chmod(place.path, stat.S_IMODE(place.entry.mode) & ~stat.S_ISGID)
    return Damage("set-gid is gone", before, _mode(place))


def _user_xattrs(place: Place) -> list[str]:
    return sorted(n for n in place.tree.listxattr(place.path) if n.startswith("user."))


def _choose_xattr(place: Place) -> tuple[str, bytes] | None:
    names = _user_xattrs(place)
    if not names:
        return None
    name = place.rng.choice(names)
    return name, place.tree.getxattr(place.path, name)


def xattr_change(place: Place) -> Damage | None:
    """An extended attribute has another value."""
    chosen = _choose_xattr(place)
    if chosen is None:
        return None
    name, old = chosen
    with edit.unlocked(place.tree, place.path):
        place.tree.setxattr(place.path, name, old[:-1] + b"?!")
    return Damage(name, repr(old[:80]), repr(place.tree.getxattr(place.path, name)[:80]))


def xattr_lost(place: Place) -> Damage | None:
    """An extended attribute is gone."""
    chosen = _choose_xattr(place)
    if chosen is None:
        return None
    name, old = chosen
    with edit.unlocked(place.tree, place.path):
        place.tree.removexattr(place.path, name)
    return Damage(name, repr(old[:80]), f"names left: {_user_xattrs(place)}")


def acl_change(place: Place) -> Damage | None:
    """A named user or group of an access control list gains or loses the right to write."""
    for name in sorted(set(ACL_XATTRS).intersection(place.tree.listxattr(place.path))):
        old = place.tree.getxattr(place.path, name)
        new = bytearray(old)
        for offset in range(_ACL_HEADER_BYTES, len(old), _ACL_ENTRY.size):
            tag, permissions, who = _ACL_ENTRY.unpack_from(old, offset)
            if tag in _NAMED_ACL_TAGS:
                _ACL_ENTRY.pack_into(new, offset, tag, permissions ^ _ACL_WRITE, who)
                place.tree.setxattr(place.path, name, bytes(new))
                found = place.tree.getxattr(place.path, name)
                return Damage(f"{name}, id {who}", old.hex(), found.hex())
    return None


def mtime_change(place: Place) -> Damage:
    """The time of the last change is another: by 1 microsecond, 1 second or 1 day."""
    found = place.tree.stat(place.path)
    moved = found.st_mtime_ns + place.rng.choice(_MTIME_STEPS_NS) * place.rng.choice((-1, 1))
    place.tree.utime_ns(place.path, found.st_atime_ns, moved)
    after = place.tree.stat(place.path).st_mtime_ns
    return Damage("mtime moved", f"{found.st_mtime_ns} ns", f"{after} ns")


def _metadata(name: str, what: str, choose: kind.Chooser, damage: kind.Damager) -> Kind:
    return Kind(name, Family.METADATA, what, ("permissions_correct",), choose, damage)


KINDS = (
    _metadata(
        "chmod",
        "a permission bit of the group or of others is toggled",
        kind.files_or_directories,
        chmod,
    ),
    Kind(
        "owner_access_lost",
        Family.METADATA,
        "the owner loses all permissions on a file (as root only)",
        ("permissions_correct", "files_accessible"),
        kind.any_file,
        owner_access_lost,
    ),
    _metadata("chown", "another user or group owns it (as root only)", kind.anything, chown),
    _metadata("setgid_lost", "a directory loses set-gid", kind.directories, setgid_lost),
    _metadata(
        "xattr_change",
        "an extended attribute has another value",
        kind.files_or_directories,
        xattr_change,
    ),
    _metadata("xattr_lost", "an extended attribute is gone", kind.files_or_directories, xattr_lost),
    _metadata(
        "acl_change",
        "a named entry of an ACL gains or loses the right to write",
        kind.files_or_directories,
        acl_change,
    ),
    _metadata("mtime_change", "the mtime moves by 1 µs, 1 s or 1 day", kind.anything, mtime_change),
)
