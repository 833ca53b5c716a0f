"""This project's code location: the drills of its own `recovery.yaml`."""

import dagster as dg

from recovery_pipelines.build import build_definitions

defs = dg.Definitions.merge(build_definitions(), dg.Definitions(executor=dg.in_process_executor))
