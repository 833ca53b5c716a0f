"""Where the values between stages lie: one Parquet file per drill, stage and month."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd

from recovery_pipelines.errors import RecoveryError
from recovery_pipelines.files import replacing

HOME_METADATA_KEY = "recovery/data_home"


class ParquetIOManager(dg.IOManager):
    """Stores DataFrames, and Parquet files given as a Path, under `data_home`/assets.

    Loads what the downstream parameter is annotated with: `Path` or `DataFrame`.
    """

    def handle_output(self, context: dg.OutputContext, obj: pd.DataFrame | Path) -> None:
        path = _path(context.definition_metadata, context.asset_key, context.partition_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, many_writers=True) as unfinished:
            if isinstance(obj, Path):
                shutil.copyfile(obj, unfinished)
            else:
                obj.to_parquet(unfinished, index=False)
        context.add_output_metadata({"path": dg.MetadataValue.path(str(path))})

    def load_input(self, context: dg.InputContext) -> pd.DataFrame | Path:
        assert context.upstream_output is not None
        metadata = context.upstream_output.definition_metadata
        path = _path(metadata, context.asset_key, context.asset_partition_key)
        if not path.is_file():
            raise RecoveryError(f"{path} is not there: materialize the stages before this one")
        return path if context.dagster_type.typing_type is Path else pd.read_parquet(path)


def _path(metadata: Mapping[str, Any] | None, key: dg.AssetKey, month: str) -> Path:
    home = Path((metadata or {})[HOME_METADATA_KEY])
    return home.joinpath("assets", *key.path, f"{month}.parquet")
