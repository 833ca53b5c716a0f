"""Dagster sensors. They watch and tell; what they do is in the engine."""
