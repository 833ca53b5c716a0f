"""One drill in a process of its own, which says aloud what its journal holds: to be killed."""

import logging
import signal
import sys
from pathlib import Path

from campaigns.history import MONTH, drill_of
from recovery_pipelines.drills.recoveries import carry_out
from recovery_pipelines.drills.scenarios import carry_out_steps
from recovery_pipelines.plan import load_plan
from recovery_pipelines.plan.targets import Target

if __name__ == "__main__":
    plan_path, drill, run_id = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` switches it off
    journal = logging.StreamHandler(sys.stdout)
    journal.addFilter(lambda record: record.levelno == logging.INFO)
    logger = logging.getLogger("recovery_pipelines")
    logger.setLevel(logging.INFO)
    logger.addHandler(journal)
    spec = drill_of(load_plan(Path(plan_path)), drill)
    (carry_out if isinstance(spec.target, Target) else carry_out_steps)(spec, MONTH, run_id)
