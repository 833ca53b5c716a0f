"""The volume that loses power: a loop-mounted ext4 image, and the ioctl that stops it dead.

After `cut`, nothing that was not synced reaches the image any more. This models the loss of the
page cache, not of a drive's own volatile cache. It needs root in the first user namespace.
"""

import ctypes
import fcntl
import os
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from recovery_pipelines.errors import ServiceError
from recovery_pipelines.tools import find_tool, run_tool

_GOINGDOWN = 0x8004587D
_WITHOUT_FLUSHING_THE_LOG = 2  # flag 0 flushes everything: no power cut
_LOOP_MAJOR = 7

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class LoopVolume:
    """A mounted image."""

    mount_point: Path
    image: Path
    loop: int
    """Number of the loop device."""

    def cut(self) -> tuple[float, float]:
        """Stop the filesystem without writing anything back; monotonic times before and after.

        Raises ServiceError, and does nothing, unless the mount point is our loop device on our
        image: anywhere else the same call would stop the machine's own filesystem.
        """
        fd = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._guard(os.fstat(fd).st_dev)
            before = time.monotonic()
            fcntl.ioctl(fd, _GOINGDOWN, struct.pack("I", _WITHOUT_FLUSHING_THE_LOG))
            return before, time.monotonic()
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Put everything on its disk. Raises ServiceError."""
        fd = os.open(self.mount_point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _libc.syncfs(fd):
                raise ServiceError(f"syncfs: {os.strerror(ctypes.get_errno())}")
        finally:
            os.close(fd)

    def _guard(self, device: int) -> None:
        backing = Path(f"/sys/block/loop{self.loop}/loop/backing_file")
        try:
            backed_by = backing.read_text().strip()
        except OSError as error:
            backed_by = str(error)
        expected = (_LOOP_MAJOR, self.loop, str(self.image))
        found = (os.major(device), os.minor(device), backed_by)
        if found != expected:
            raise ServiceError(
                f"refused to cut the power of {self.mount_point}: it is device "
                f"{found[0]}:{found[1]} on {found[2]}, not loop{self.loop} on {self.image}"
            )


def make_image(image: Path, size_bytes: int) -> None:
    """A sparse file with an empty ext4 filesystem."""
    with image.open("wb") as file:
        file.truncate(size_bytes)
    done = run_tool(
        [find_tool("mkfs.ext4", "e2fsprogs"), "-q", "-m", "0", "-E", "nodiscard", "--", image]
    )
    if done.returncode:
        raise ServiceError(f"mkfs.ext4 of {image} failed: {done.complaint}")


def mount_image(image: Path, mount_point: Path) -> LoopVolume:
    """Mount `image`; the loop device vanishes with the mount. ServiceError where that fails."""
    mount = find_tool("mount", "util-linux")
    done = run_tool([mount, "-t", "ext4", "-o", "loop,data=ordered", image, mount_point])
    if done.returncode:
        raise ServiceError(f"{image} cannot be mounted: {done.complaint}")
    return LoopVolume(mount_point, image.resolve(), os.minor(mount_point.stat().st_dev))


def is_attached(image: Path) -> bool:
    """Whether any loop device still holds this image."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().strip() == str(image):
                return True
        except OSError:
            continue  # it is being detached
    return False
