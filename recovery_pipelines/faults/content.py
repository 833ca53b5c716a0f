"""Damage to what files hold. Silent: mode and times are put back."""

import ctypes
import errno
import os
from collections.abc import Callable
from random import Random

from recovery_pipelines.faults import edit, kind
from recovery_pipelines.faults.base import Family
from recovery_pipelines.faults.kind import Damage, Damager, Kind, Place

BLOCK_BYTES = 4096
_ATTEMPTS = 32
_SCANNED_BYTES = 16 << 20
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02

Change = Callable[[bytes, Random], bytes]
"""New content for a block of the same length."""


def _block(size: int, rng: Random, length: int = BLOCK_BYTES) -> tuple[int, int]:
    """Offset (a multiple of 4 KiB) and length of a block; shorter only at the end of the file."""
    offset = rng.randrange(-(-size // BLOCK_BYTES)) * BLOCK_BYTES
    return offset, min(length, size - offset)


def replace(place: Place, offset: int, new: bytes, what: str) -> Damage | None:
    """Overwrite in place; None if those bytes are there already."""
    old = edit.read_range(place.tree, place.path, offset, len(new))
    if old == new:
        return None
    with edit.quiet(place.tree, place.path):
        edit.write_range(place.tree, place.path, offset, new)
    found = edit.read_range(place.tree, place.path, offset, len(new))
    return Damage(f"{what} at byte {offset}", edit.digest(old), edit.digest(found))


def change_block(change: Change, what: str, length: int = BLOCK_BYTES) -> Damager:
    """Damages one block by a function of its content; tries other blocks if nothing changes."""

    def damage(place: Place) -> Damage | None:
        for _ in range(_ATTEMPTS):
            offset, held = _block(place.size, place.rng, length)
            old = edit.read_range(place.tree, place.path, offset, held)
            done = replace(place, offset, change(old, place.rng), f"{held} bytes {what}")
            if done:
                return done
        return None

    return damage


def zeros(old: bytes, rng: Random) -> bytes:
    """The block was lost."""
    return bytes(len(old))


def torn(old: bytes, rng: Random) -> bytes:
    """The first sectors of a new version were written, the rest is the old one."""
    written = min(len(old), 512 * rng.randrange(1, 8)) if len(old) > 512 else -(-len(old) // 2)
    return rng.randbytes(written) + old[written:]


def older(old: bytes, rng: Random) -> bytes:
    """About one byte in eight is another, as in a page whose last write was lost."""
    page = bytearray(old)
    for position in rng.sample(range(len(page)), -(-len(page) // 8)):
        page[position] ^= rng.randrange(1, 256)
    return bytes(page)


def bit_flip(place: Place) -> Damage | None:
    """One bit, anywhere."""
    offset = place.rng.randrange(place.size)
    bit = place.rng.randrange(8)
    old = edit.read_range(place.tree, place.path, offset, 1)
    return replace(place, offset, bytes([old[0] ^ 1 << bit]), f"bit {bit} flipped")


def misdirected_write(place: Place) -> Damage | None:
    """A block of another file lands in this one."""
    for other in place.siblings():
        offset, length = _block(place.size, place.rng)
        origin, _ = _block(other.size, place.rng)
        stray = edit.read_range(place.tree, other.path, origin, length)
        done = replace(place, offset, stray, f"{len(stray)} bytes of {other.path!r}")
        if done:
            return done
    return None


def _two_blocks(place: Place) -> tuple[int, int, int] | None:
    """Two different offsets and a length, if the file is long enough."""
    length = BLOCK_BYTES if place.size >= 2 * BLOCK_BYTES else place.size // 2
    if length == 0:
        return None
    count = place.size // length
    first = place.rng.randrange(count)
    second = (first + place.rng.randrange(1, count)) % count
    return first * length, second * length, length


def block_swap(place: Place) -> Damage | None:
    """Two blocks change places."""
    for _ in range(_ATTEMPTS):
        if (chosen := _two_blocks(place)) is None:
            return None
        first, second, length = chosen
        one = edit.read_range(place.tree, place.path, first, length)
        other = edit.read_range(place.tree, place.path, second, length)
        if one != other:
            replace(place, first, other, "")
            return replace(place, second, one, f"{length} bytes swapped with byte {first},")
    return None


def duplicated_block(place: Place) -> Damage | None:
    """A block is written a second time, over another one."""
    for _ in range(_ATTEMPTS):
        if (chosen := _two_blocks(place)) is None:
            return None
        first, second, length = chosen
        block = edit.read_range(place.tree, place.path, first, length)
        if done := replace(place, second, block, f"{length} bytes copied from byte {first}"):
            return done
    return None


def resize(new_size: Callable[[int, Random], int]) -> Damager:
    """Cuts a file to another size."""

    def damage(place: Place) -> Damage | None:
        size = new_size(place.size, place.rng)
        if not 0 <= size < place.size:
            return None
        with edit.quiet(place.tree, place.path):
            edit.truncate(place.tree, place.path, size)
        found = place.tree.stat(place.path).st_size
        return Damage("cut", f"{place.size} bytes", f"{found} bytes")

    return damage


def append_garbage(place: Place) -> Damage | None:
    """Bytes that nobody wrote, at the end."""
    with edit.quiet(place.tree, place.path):
        garbage = place.rng.randbytes(place.rng.randrange(1, 5000))
        edit.write_range(place.tree, place.path, place.size, garbage)
    found = place.tree.stat(place.path).st_size
    return Damage(f"{len(garbage)} bytes appended", f"{place.size} bytes", f"{found} bytes")


def overwritten_by_sibling(place: Place) -> Damage | None:
    """The whole content becomes that of another file."""
    for other in place.siblings():
        if edit.same_content(place.tree, place.path, other.path):
            continue
        with edit.quiet(place.tree, place.path):
            edit.rewrite(place.tree, place.path, edit.read_chunks(place.tree, other.path))
        return Damage(
            f"content of {other.path!r}",
            f"{place.size} bytes",
            f"{place.tree.stat(place.path).st_size} bytes of another file",
        )
    return None


def _punch_hole(place: Place, offset: int, length: int) -> bool:
    """Deallocate a range; False if the file system cannot."""
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    with edit.quiet(place.tree, place.path):
        fd = place.tree.open(place.path, os.O_RDWR)
        try:
            if fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, offset, length) == 0:
                return True
        finally:
            os.close(fd)
    number = ctypes.get_errno()
    if number == errno.EOPNOTSUPP:
        return False
    raise OSError(number, os.strerror(number), os.fsdecode(place.path))


def hole_punch(place: Place) -> Damage | None:
    """8 KiB of data become a hole."""
    for _ in range(_ATTEMPTS):
        offset, length = _block(place.size, place.rng, 2 * BLOCK_BYTES)
        old = edit.read_range(place.tree, place.path, offset, length)
        if not any(old):
            continue
        if not _punch_hole(place, offset, length):
            return None
        found = edit.read_range(place.tree, place.path, offset, length)
        what = f"hole of {length} bytes at byte {offset}"
        return Damage(what, edit.digest(old), edit.digest(found))
    return None


def zeros_to_hole(place: Place) -> Damage | None:
    """4 KiB of zeros become a hole: other blocks on disk, the same content."""
    block = _allocated_zeros(place)
    if block is None or not _punch_hole(place, block, BLOCK_BYTES):
        return None
    found = edit.read_range(place.tree, place.path, block, BLOCK_BYTES)
    return Damage(
        f"hole in zeros at byte {block}", edit.digest(bytes(BLOCK_BYTES)), edit.digest(found)
    )


def _allocated_zeros(place: Place) -> int | None:
    """The offset of a block of zeros that is really written, in the first 16 MiB."""
    with edit.unlocked(place.tree, place.path):
        fd = place.tree.open(place.path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        for offset in range(0, min(place.size, _SCANNED_BYTES) - BLOCK_BYTES + 1, BLOCK_BYTES):
            file.seek(offset)
            if any(file.read(BLOCK_BYTES)):
                continue
            try:
                data = os.lseek(fd, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                    return None
                raise
            if data == offset:
                return offset
    return None


def _content(name: str, what: str, damage: Damager) -> Kind:
    return Kind(name, Family.CONTENT, what, ("checksums_match",), kind.files, damage)


KINDS = (
    _content("bit_flip", "one bit of a file is flipped", bit_flip),
    _content("zero_range", "4 KiB become zeros", change_block(zeros, "zeroed")),
    _content("torn_write", "a 4 KiB page is half new, half old", change_block(torn, "torn")),
    _content("truncate", "a file is cut at a random byte", resize(lambda n, rng: rng.randrange(n))),
    _content("truncate_to_zero", "a file loses all content", resize(lambda n, rng: 0)),
    _content("append_garbage", "up to 5 kB of random bytes are appended", append_garbage),
    _content("block_swap", "two 4 KiB blocks of a file change places", block_swap),
    _content("duplicated_block", "a 4 KiB block overwrites another", duplicated_block),
    _content("misdirected_write", "4 KiB of another file land in this one", misdirected_write),
    _content(
        "lost_write",
        "a 4 KiB page is an older version: one byte in eight differs",
        change_block(older, "older"),
    ),
    _content("hole_punch", "8 KiB of data become a hole", hole_punch),
    _content(
        "overwritten_by_sibling", "a file gets another file's content", overwritten_by_sibling
    ),
    Kind(
        "zeros_to_hole",
        Family.CONTENT,
        "4 KiB of zeros become a hole; the content is equal",
        (),
        kind.files,
        zeros_to_hole,
        changes_data=False,
    ),
)
