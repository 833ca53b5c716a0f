"""Patterns, for a tool that restores by them, of all entries in a range of paths and few others.

Whole subtrees are named by their root, siblings by what their names begin with, so that their
number hardly grows with the tree.
"""

import bisect
from collections.abc import Collection, Iterator, Mapping, Sequence

from recovery_pipelines.manifest import PathRange
from recovery_pipelines.manifest.ranges import ancestors, order, parent

MOST_PATTERNS = 500
"""restic compares each entry with each."""
_LOSSY = "\N{REPLACEMENT CHARACTER}".encode()

Children = Mapping[bytes, Mapping[bytes, bool]]
"""What lies in a folder: names, and whether each is a folder."""
Pattern = tuple[bytes, bool]
"""A path, and whether whatever begins with it is meant too."""


def boundary(wanted: PathRange) -> list[bytes]:
    """The folders that are partly in a range. Their children must be known."""
    edges = [wanted.start, *([wanted.end] if wanted.end is not None else [])]
    return sorted({b"", *(folder for edge in edges for folder in ancestors(edge))}, key=order)


def cover(wanted: PathRange, children: Children) -> list[Pattern]:
    """Patterns for all entries in the range, given the `children` of its `boundary` folders.

    A folder comes back by itself when something beneath it does, so one of its children is added
    where none is in the range. Empty if the tree has nothing in the range.
    """
    found = [
        (folder + b"/" + name if folder else name, is_prefix)
        for folder, inside in children.items()
        for name, is_prefix in _siblings(wanted, folder, inside, children)
    ]
    return found + _for_folders(wanted, children, found)


def coarsened(paths: Collection[bytes], most: int) -> list[bytes]:
    """At most so many paths whose subtrees hold all of `paths`; the deepest are given up first."""
    while len(paths) > most:
        depth = max(path.count(b"/") for path in paths)
        paths = {parent(path) if path.count(b"/") == depth else path for path in paths}
    return sorted(paths)


def _siblings(
    wanted: PathRange, folder: bytes, inside: Mapping[bytes, bool], children: Children
) -> Iterator[Pattern]:
    """Those children of one folder that lie in the range with all that is beneath them."""
    above = folder + b"/" if folder else b""
    # A tool may write U+FFFD for bytes that are no text: where such a name lies is not known.
    names = sorted(name for name in inside if _LOSSY not in name)
    places = [order(above + name) for name in names]
    first = bisect.bisect_left(places, order(wanted.start))
    last = len(names) if wanted.end is None else bisect.bisect_left(places, order(wanted.end))
    if last > first and above + names[last - 1] in children:
        last -= 1  # an ancestor of the range's end
    yield from _prefixes(names, first, last, 0, len(names), 0)
    for stem in {name.partition(_LOSSY)[0] for name in inside if _LOSSY in name}:
        lowest, highest = order(above + stem), order(above + stem) + b"\xff" * 256
        if highest >= order(wanted.start) and (wanted.end is None or lowest < order(wanted.end)):
            yield stem, True


def _prefixes(
    names: Sequence[bytes], first: int, last: int, low: int, high: int, length: int
) -> Iterator[Pattern]:
    """Patterns for names[first:last] and no other of the names.

    names[low:high], sorted, share their first `length` bytes.
    """
    if first >= high or last <= low:
        return
    if high - low == 1:
        yield names[low], False
    elif first <= low and high <= last:
        yield names[low][:length], True
    else:
        at = low
        while at < high:
            end = at + 1
            if len(names[at]) > length:
                common = names[at][: length + 1]
                beyond = common[:-1] + bytes([common[-1] + 1]) if common[-1] < 255 else None
                end = high if beyond is None else bisect.bisect_left(names, beyond, at, high)
                yield from _prefixes(names, first, last, at, end, length + 1)
            elif first <= at < last:
                yield names[at], False
            at = end


def _for_folders(wanted: PathRange, children: Children, found: Sequence[Pattern]) -> list[Pattern]:
    """One more entry, if a folder that is partly in the range would not come back without it."""
    edge = wanted.start if wanted.end is None else wanted.end
    for folder in ancestors(edge) if edge else [b""]:
        beneath = folder + b"/" if folder else b""
        if folder not in wanted or any(path.startswith(beneath) for path, _ in found):
            return []
        above, _, name = folder.rpartition(b"/")
        if folder and name not in children[above]:
            continue
        inside = children[folder]
        for child in sorted(inside, key=lambda child: (_LOSSY in child, inside[child], child)):
            stem, lossy, _ = child.partition(_LOSSY)
            return [(beneath + stem, bool(lossy))]
        return [(folder, False)]
    return []
