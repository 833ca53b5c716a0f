"""Reports of a month: what is known (`collect`), how it looks (`render`), where it goes."""
