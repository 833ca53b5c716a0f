"""What a manifest holds, in numbers. Needs no pyarrow, as `capture` starts without it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """What a manifest holds."""

    entries: int
    """Rows, the root included."""
    files: int
    bytes: int
    """Size of all regular files."""
    errors: int
    """Rows that could not be read, or that changed while they were read."""
    digest: str
    """xxh3_128 of all rows, hex: equal trees give equal digests."""

    @property
    def complete(self) -> bool:
        return self.errors == 0
