"""The detection matrix: which damage is noticed by whom, measured by planting it."""
