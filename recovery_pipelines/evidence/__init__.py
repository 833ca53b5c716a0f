"""Evidence: what drills found, signed and chained so that later changes show (docs/evidence.md)."""

from recovery_pipelines.evidence.chain import (
    Entry,
    head_line,
    is_sealed,
    read_chain,
    rotate_key,
    seal,
)
from recovery_pipelines.evidence.verify import Report, verify

__all__ = [
    "Entry",
    "Report",
    "head_line",
    "is_sealed",
    "read_chain",
    "rotate_key",
    "seal",
    "verify",
]
