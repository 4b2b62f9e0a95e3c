"""The command line. Commands that need only the library work from the wheel; the others say so outside a checkout."""

import sys

import click

from hone.cli import data, models, rollout, stack
from hone.errors import HoneError

SECTIONS = (
    ("The stack", stack.commands),
    ("Feedback and data", data.commands),
    ("Training and models", models.commands),
    ("Live traffic", rollout.commands),
)


class Sections(click.Group):
    """Lists the commands by section, and turns a HoneError into one line and exit code 1."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block for each section, in the order of the loop."""
        for title, commands in SECTIONS:
            rows = [(command.name or "", command.get_short_help_str(limit=90)) for command in commands]
            with formatter.section(title):
                formatter.write_dl(rows)

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; errors of hone end it without a traceback."""
        try:
            return super().invoke(ctx)
        except HoneError as error:
            click.secho(f"hone: {error}", fg="red", err=True)
            sys.exit(1)


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hone")
def cli() -> None:
    """Turn what people do with a chat model's answers into a better model, continuously and safely."""


for _, _commands in SECTIONS:
    for _command in _commands:
        cli.add_command(_command)
