"""A program of its own: become the owner of files, and try to open and read them.

`main` takes UID GID ROOT_FD as arguments and NUL-separated relative paths on stdin.
Prints one line per path: `read` and the first 16 bytes in hex, or what went wrong; exits 3 if it
cannot become that user. Everything is imported before it changes its user, who may not be allowed
to read the libraries.
"""

import ctypes
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from recovery_pipelines.errors import SandboxError

if TYPE_CHECKING or __package__:
    from recovery_pipelines.sandbox.beneath import open_beneath
else:  # without its package, which would take long to load
    from beneath import open_beneath

CANNOT_BECOME_OWNER = 3

_HEAD_BYTES = 4096
_MAGIC_BYTES = 16
_PR_SET_PDEATHSIG = 1
_SIGKILL = 9
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


def become(uid: int, gid: int) -> None:
    """Become an ordinary user for good: no other groups, no capabilities (uid 0 included)."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        no_capabilities = (ctypes.c_uint32 * 6)()
        if _libc.capset(header, no_capabilities) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL)  # the change of user has cleared it
    elif os.geteuid() != uid:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def try_to_read(root: int, path: bytes) -> str:
    """Open and read the first 4 KiB and the last byte; the line to print."""
    try:
        file = open_beneath(root, path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except SandboxError:
        return "behind a link or a mount"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown error")
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            return "not a regular file"
        head = os.pread(file, _HEAD_BYTES, 0)
        last = os.pread(file, 1, max(status.st_size - 1, 0))
        if len(head) != min(_HEAD_BYTES, status.st_size) or len(last) != min(1, status.st_size):
            return "shorter than its size"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "unknown error")
    finally:
        os.close(file)
    return f"read {head[:_MAGIC_BYTES].hex()}"


def main() -> None:
    """Read the request, change the user, answer."""
    uid, gid, root = (int(argument) for argument in sys.argv[1:])
    paths = sys.stdin.buffer.read().split(b"\0")
    os.close(open_beneath(root, b"", os.O_PATH))  # looks for openat2 while it still may
    try:
        become(uid, gid)
    except OSError as error:
        print(f"cannot become user {uid}, group {gid}: {error.strerror}", file=sys.stderr)  # noqa: T201
        sys.exit(CANNOT_BECOME_OWNER)
    sys.stdout.write("".join(f"{try_to_read(root, path)}\n" for path in paths))
