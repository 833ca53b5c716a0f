"""The plan's `detection_matrix`: which engines are damaged, and how often."""

from typing import Annotated

from pydantic import ByteSize, Field, PositiveInt, field_validator

from recovery_pipelines.plan.base import Name, Strict, unique


class DetectionMatrix(Strict):
    """Every kind of fault is planted in repositories of generated data, once per trial."""

    engines: Annotated[tuple[Name, ...], Field(min_length=1)] = ("tar",)
    """Whose repositories are damaged."""
    trials: PositiveInt = 1
    """How often each kind of fault is planted for each engine, each time in other data."""
    size: Annotated[ByteSize, Field(ge=1_000_000)] = ByteSize(1_000_000)
    """Of the generated data; at least 1 MB."""

    _no_repeats = field_validator("engines")(unique)
