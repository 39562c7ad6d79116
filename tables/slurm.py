"""A table as an array job of SLURM, a task for each run.

A task is the plain command of its run, not a cell with all its seeds in one process as in tables/runner.py: SLURM
then schedules, stops and requeues every run by itself. That costs compiling for every seed, but where the tasks share
a home folder, where JAX keeps what it has compiled.
"""

import os
import shlex
import sys
from collections.abc import Sequence

from errors import UserError
from tables import spec
from train import provenance

_SCRIPT = """#!/bin/bash
# {title}: {count} runs, a task each. Partition, time, memory and GPUs are flags of sbatch: sbatch --time=4:00:00 FILE
# Afterwards the command of the table, without --slurm, writes the pages.
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
runs=(
{runs}
)
cd {folder} || exit
# Told to stop, the run saves and ends; requeued, it goes on. SIGUSR1 comes two minutes before the time limit. SIGTERM
# is preemption, after which SLURM requeues by itself, or scancel, after which nobody should.
trap 'limit=1; again=1; kill -TERM $!' USR1
trap 'again=1; kill -TERM $!' TERM
eval "exec ${{runs[$SLURM_ARRAY_TASK_ID]}}" &
again=1
while [ -n "$again" ]; do  # a trap ends a wait
    again=
    wait $!
    code=$?
done
if [ -n "$limit" ] && [ $code = 143 ]; then
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit $code"""


def script(table: spec.Table, runs: Sequence[spec.Run], name: str, data_dir: str | None) -> str:
    """Returns the script for sbatch.

    Args:
        table: The table.
        runs: Its runs that are to be made.
        name: Name of the table.
        data_dir: Folder of prepared data sets; None for tfds's own.

    Raises:
        UserError: There is nothing to make.
    """
    if not runs:
        raise UserError('No run of this table is to be made: its command without --slurm writes the pages.')
    folder = [f'--data_dir={os.path.abspath(data_dir)}'] if data_dir else []
    main = [sys.executable, str(provenance.ROOT / 'main.py')]
    lines = [shlex.quote(shlex.join([*main, *spec.flags(table, run), *folder])) for run in runs]
    return _SCRIPT.format(
        title=table.title,
        count=len(runs),
        name=shlex.quote(name),
        last=len(runs) - 1,
        runs='\n'.join(lines),
        folder=shlex.quote(os.getcwd()),
    )
