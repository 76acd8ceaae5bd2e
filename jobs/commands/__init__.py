"""The commands: arguments, prompts, and the call of a job, nothing else.

A command only puts its arguments in order and returns the job; `cli.main` runs it. Jobs are imported when
they are run: `--help` must not wait for Numba.
"""

from jobs.commands import main_jobs as main_jobs
from jobs.commands import tools as tools
from jobs.commands.options import app as app
