"""The commands: arguments, prompts, and the call of a job.

Each job is imported when its command runs: `--help` must not wait for Numba.
"""

from jobs.commands import main_jobs as main_jobs
from jobs.commands import tools as tools
from jobs.commands.app import app as app
