"""Makes the world read-only, in a mount namespace of its own.

`tools.run_tool` starts it before a tool: `python confine.py WRITABLE... -- COMMAND...`. Only the
folders WRITABLE stay writable; set-id bits and device nodes in them have no effect. It needs
nothing but the standard library's core: it runs isolated, before each restore. Constants are those
of linux/mount.h and linux/prctl.h.
"""

import ctypes
import os
import sys

_SYS_MOUNT_SETATTR = 442  # the same number on every architecture of Linux
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_MS_BIND = 4096
_READ_ONLY, _NO_SET_ID, _NO_DEVICES = 1, 2, 4
_CLEAR_AMBIENT = (47, 4, 0, 0, 0)

_libc = ctypes.CDLL(None, use_errno=True)


def _must(result: int, what: str) -> None:
    if result:
        sys.exit(f"no read-only world: {what}: {os.strerror(ctypes.get_errno())}")


def _set_attributes(path: str, wanted: int, unwanted: int, flags: int = 0) -> None:
    attributes = (ctypes.c_uint64 * 4)(wanted, unwanted, 0, 0)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    done = _libc.syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, attributes, size)
    _must(done, path)


def read_only_but(mounts: list[str]) -> None:
    """All is read-only but these mount points."""
    _set_attributes("/", _READ_ONLY | _NO_SET_ID, 0, _AT_RECURSIVE)
    for path in mounts:
        _set_attributes(path, _NO_SET_ID | _NO_DEVICES, _READ_ONLY)


def hide(path: str) -> None:
    """Whoever opens the file `path` finds /dev/null."""
    _must(_libc.mount(b"/dev/null", os.fsencode(path), None, _MS_BIND, None), path)


def main(writable: list[str], command: list[str]) -> None:
    """Does not return."""
    for path in writable:
        there = os.fsencode(path)
        _must(_libc.mount(there, there, None, _MS_BIND, None), path)
    read_only_but(writable)
    os.chdir(os.getcwd())  # noqa: PTH109 - it was the folder under the new mount
    _must(_libc.prctl(*_CLEAR_AMBIENT), "giving up rights")  # an ordinary user's, of the namespace
    os.execvp(command[0], command)


if __name__ == "__main__":
    end = sys.argv.index("--")
    main(sys.argv[1:end], sys.argv[end + 1 :])
