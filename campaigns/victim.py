"""One drill in a process of its own, which says aloud what its journal holds: to be killed."""

import logging
import sys
from pathlib import Path

from campaigns.history import MONTH, drill_of
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.plan import load_plan

if __name__ == "__main__":
    plan_path, scenario, run_id = sys.argv[1:]
    journal = logging.StreamHandler(sys.stdout)
    journal.addFilter(lambda record: record.levelno == logging.INFO)
    logger = logging.getLogger("recovery_pipelines")
    logger.setLevel(logging.INFO)
    logger.addHandler(journal)
    carry_out(drill_of(load_plan(Path(plan_path)), scenario), MONTH, run_id)
