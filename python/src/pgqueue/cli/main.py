"""The command ``pgqueue``: all commands, in the sections in which its help shows them."""

from __future__ import annotations

import click

import pgqueue
from pgqueue.cli import dead, enqueue, exclusive, jobs, queues, schedules, schema, top

SECTIONS: dict[str, list[click.Command]] = {
    "Queues": [
        queues.queues,
        queues.create_queue,
        queues.alter_queue,
        queues.set_limits,
        queues.set_unique,
        queues.purge,
        queues.drop_queue,
        queues.pause,
        queues.resume,
    ],
    "Jobs": [enqueue.enqueue, jobs.jobs, jobs.show_job, jobs.wait, jobs.cancel, dead.dead],
    "Recurring jobs": [schedules.schedule, schedules.next_runs],
    "Watching": [queues.stats, top.top, top.workers, queues.doctor],
    "The database": [schema.install, schema.upgrade, schema.version, schema.maintain],
    "Other programs": [exclusive.exclusive],
}


class _Sections(click.Group):
    """A group whose help lists the commands by what they are for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self.commands))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                room = formatter.width - width - 6
                formatter.write_dl([(f"{one.name:{width}}", one.get_short_help_str(room)) for one in commands])


@click.group(cls=_Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pgqueue.__version__, prog_name="pgqueue")
def main() -> None:
    """A job queue inside PostgreSQL."""


for section in SECTIONS.values():
    for command in section:
        main.add_command(command)
