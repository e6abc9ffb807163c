"""The commands ``pgqueue`` and ``pgq-worker``, one file for each thing that they are about.

Importing it is cheap: psycopg and rich take longer to load than a shell wants to wait for ``--help``.
"""

from pgqueue.cli.main import main
from pgqueue.cli.worker import worker

__all__ = ["main", "worker"]
