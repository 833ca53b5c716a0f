"""openat2(2): opens names beneath a directory, and nowhere else, however they are raced.

Python has no wrapper for this system call. This module holds it, and the rule for names.
"""

import ctypes
import errno
import functools
import os

from recovery_pipelines.errors import SandboxError

_SYS_OPENAT2 = 437  # the same number on every architecture of Linux
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_BENEATH = 0x08
_RESOLVE = _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_LONGEST_PATH_BYTES = 4000  # PATH_MAX is 4096; deeper names are opened in several steps

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def show(relative: bytes) -> str:
    """A relative path for messages, whatever bytes it holds."""
    return repr(os.fsdecode(relative)) if relative else "the tree's root"


def check_name(relative: bytes) -> None:
    """Refuse what is not a plain relative path: absolute, empty parts, `.`, `..`, NUL."""
    if relative and (
        b"\0" in relative or any(part in (b"", b".", b"..") for part in relative.split(b"/"))
    ):
        raise SandboxError(
            f"refused {show(relative)}: a path inside a tree is relative, without '..', '.', "
            "or empty parts"
        )


def open_beneath(root_fd: int, relative: bytes, flags: int, mode: int = 0) -> int:
    """Open `relative` beneath `root_fd` (the root itself is b"") and return a file descriptor.

    Symbolic links, magic links and mount points on the way or at the end are a SandboxError
    (with O_PATH|O_NOFOLLOW a symbolic link at the end is opened itself). Other failures are the
    usual OSError.
    """
    check_name(relative)
    _require_openat2()
    if not relative and flags & os.O_PATH:
        return os.dup(root_fd)  # looking up "." would need the right to search the root
    at = root_fd
    rest = relative or b"."
    try:
        while len(rest) > _LONGEST_PATH_BYTES:
            head, _, _ = rest[:_LONGEST_PATH_BYTES].rpartition(b"/")
            if not head:
                raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
            step = _openat2(at, head, os.O_PATH | os.O_DIRECTORY, 0)
            if at != root_fd:
                os.close(at)
            at, rest = step, rest[len(head) + 1 :]
        return _openat2(at, rest, flags, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SandboxError(f"refused {show(relative)}: it leads through a link") from None
        if error.errno == errno.EXDEV:
            raise SandboxError(
                f"refused {show(relative)}: it leads out of the tree or into a mount"
            ) from None
        raise OSError(error.errno, error.strerror, os.fsdecode(relative)) from None
    finally:
        if at != root_fd:
            os.close(at)


def _openat2(at: int, path: bytes, flags: int, mode: int) -> int:
    how = _OpenHow(flags | os.O_CLOEXEC, mode if flags & os.O_CREAT else 0, _RESOLVE)
    while True:
        fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(at),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return fd
        number = ctypes.get_errno()
        # EAGAIN: a rename elsewhere raced with the lookup, so the kernel could not vouch for it.
        if number not in (errno.EAGAIN, errno.EINTR):
            raise OSError(number, os.strerror(number))


@functools.cache
def _require_openat2() -> None:
    try:
        os.close(_openat2(-100, b".", os.O_PATH | os.O_DIRECTORY, 0))  # -100: AT_FDCWD
    except OSError as error:
        raise SandboxError(
            "this kernel does not offer openat2 (Linux 5.6 or later, and a container that lets "
            f"it through): without it nothing is damaged here ({error.strerror})"
        ) from None
