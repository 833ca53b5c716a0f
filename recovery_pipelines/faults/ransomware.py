"""What ransomware leaves behind: encrypted content, changed names, a note. Not silent."""

from recovery_pipelines.faults import edit, kind
from recovery_pipelines.faults.base import Family
from recovery_pipelines.faults.kind import Damage, Kind, Place

_ENCRYPTED_BYTES = 1 << 20  # of each file's head: intermittent, as the fast ones do it
_MOST_FILES = 200
_SUFFIX = b".locked"
_NOTE_NAME = b"HOW_TO_RESTORE_FILES.txt"
_NOTE = b"All your files are encrypted. Do not rename them.\n"


def encrypt_in_place(place: Place) -> Damage:
    """The head of a file becomes noise; name and size stay."""
    tree, length = place.tree, min(place.size, _ENCRYPTED_BYTES)
    before = edit.digest(edit.read_range(tree, place.path, 0, length))
    with edit.advancing(tree, place.path, place.rng):
        edit.write_range(tree, place.path, 0, place.rng.randbytes(length))
    after = edit.digest(edit.read_range(tree, place.path, 0, length))
    return Damage(f"first {length} bytes encrypted", before, after)


def encrypt_and_rename(place: Place) -> Damage:
    """As above, and the name gets a suffix."""
    done = encrypt_in_place(place)
    name = edit.free_name(place.tree, edit.with_suffix(place.path, _SUFFIX))
    with edit.advancing(place.tree, edit.parent(place.path), place.rng):
        place.tree.rename(place.path, name)
    what = f"{done.detail}, renamed to {name!r}"
    return Damage(what, done.before, done.after, also=(name,))


def _leave_note(place: Place, directory: bytes) -> bytes:
    tree = place.tree
    path = edit.free_name(tree, edit.below(directory, _NOTE_NAME))
    moment = tree.stat(directory).st_mtime_ns
    with edit.advancing(tree, directory, place.rng):
        tree.write(path, _NOTE)
        tree.utime_ns(path, moment, moment)
    return path


def ransom_note(place: Place) -> Damage:
    """Only the note: one unexpected file."""
    path = _leave_note(place, place.path)
    return Damage("a note", "absent", f"{place.tree.stat(path).st_size} bytes", path)


def mass_encrypt(place: Place) -> Damage | None:
    """The files of a directory and of all below it, with a note in each directory."""
    inside = [
        entry
        for entry in place.entries
        if entry.is_file and entry.size and entry.path.startswith(place.path + b"/")
    ][:_MOST_FILES]
    if not inside:
        return None
    for entry in inside:
        encrypt_and_rename(Place(place.tree, entry, place.entries, place.rng))
    for directory in sorted({edit.parent(entry.path) for entry in inside}):
        _leave_note(place, directory)
    left = sum(place.tree.exists(entry.path) for entry in inside)
    return Damage(
        f"{len(inside)} files below {place.path!r} encrypted and renamed, with notes",
        f"{len(inside)} files",
        f"{left} files",
        path=inside[0].path,
        also=(place.path,),
    )


def _ransomware(
    name: str, what: str, caught_by: str, choose: kind.Chooser, damage: kind.Damager
) -> Kind:
    return Kind(name, Family.RANSOMWARE, what, (caught_by,), choose, damage)


KINDS = (
    _ransomware(
        "encrypt_in_place",
        "the first MiB of a file becomes noise",
        "checksums_match",
        kind.files,
        encrypt_in_place,
    ),
    _ransomware(
        "encrypt_and_rename",
        "a file is encrypted and renamed to *.locked",
        "all_files_recovered",
        kind.files,
        encrypt_and_rename,
    ),
    _ransomware(
        "ransom_note",
        "a note appears in a directory",
        "all_files_recovered",
        kind.directories,
        ransom_note,
    ),
    _ransomware(
        "mass_encrypt",
        "up to 200 files below a directory are encrypted and renamed, with notes",
        "all_files_recovered",
        kind.directories,
        mass_encrypt,
    ),
)
