"""Where the values between stages lie: one Parquet file per drill, stage and month."""

import os
import shutil
from pathlib import Path

import dagster as dg
import pandas as pd

from recovery_pipelines.errors import RecoveryError

HOME_METADATA_KEY = "recovery/data_home"


class ParquetIOManager(dg.IOManager):
    """Stores DataFrames, and Parquet files given as a Path, under `data_home`/assets.

    Loads what the downstream parameter is annotated with: `Path` or `DataFrame`.
    """

    def handle_output(self, context: dg.OutputContext, obj: pd.DataFrame | Path) -> None:
        path = _path_of(context)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}")
        if isinstance(obj, Path):
            shutil.copyfile(obj, unfinished)
        else:
            obj.to_parquet(unfinished, index=False)
        unfinished.replace(path)
        context.add_output_metadata({"path": dg.MetadataValue.path(str(path))})

    def load_input(self, context: dg.InputContext) -> pd.DataFrame | Path:
        assert context.upstream_output is not None
        path = _path_of(context.upstream_output)
        if not path.is_file():
            raise RecoveryError(f"{path} is not there: materialize the stages before this one")
        return path if context.dagster_type.typing_type is Path else pd.read_parquet(path)


def _path_of(context: dg.OutputContext) -> Path:
    metadata = context.definition_metadata or {}
    home = Path(metadata[HOME_METADATA_KEY])
    return home.joinpath("assets", *context.asset_key.path, f"{context.partition_key}.parquet")


PARQUET = dg.IOManagerDefinition.hardcoded_io_manager(ParquetIOManager())
