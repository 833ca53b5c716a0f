"""Iceberg records where its files were; here they are read where they lie now, nowhere else."""

from pyiceberg.io import InputFile, OutputFile
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO


class RelocatedIO(PyArrowFileIO):
    """Reads `recorded-location` (a property of the table's) at `location`. Never writes."""

    def new_input(self, location: str) -> PyArrowFile:
        """An address outside of the table is refused: it would be the live data."""
        here, there = self.properties["location"], self.properties["recorded-location"].rstrip("/")
        if location.startswith(here + "/"):
            return super().new_input(location)
        if not location.startswith(there + "/") or ".." in location.split("/"):
            raise ValueError(f"a file lies outside of the table: {location}")
        return super().new_input(here + location[len(there) :])

    def new_output(self, location: str) -> PyArrowFile:
        raise PermissionError(f"{location}: a table is only read here")

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise PermissionError(f"{location}: a table is only read here")
