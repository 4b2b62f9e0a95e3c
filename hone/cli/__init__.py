"""The command line. Commands that need only the library work from the wheel; the others say so outside a checkout.

The list below is all that `hone --help` reads: a command's module is imported when the command is used.
"""

import sys
from importlib import import_module

import click

from hone.errors import HoneError

SECTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "The stack": (
        "hone.cli.stack",
        {
            "up": "Start the whole stack here and leave it running; `hone down` stops it",
            "down": "Stop what `hone up` or an interrupted demo left; data stays",
            "restart": "Stop programs of the stack that runs here, and start them again with the settings of now",
            "status": "Show each part and its health, how far the next retraining is, and the live rollout",
            "doctor": "Check this machine and the configuration; every problem comes with its remedy",
            "migrate": "Bring the database schema to this version; safe to run from many places at once",
            "freeze": "Stop retraining and rollouts everywhere at once; feedback is still collected",
            "unfreeze": "Let retraining and rollouts go on",
        },
    ),
    "Feedback and data": (
        "hone.cli.data",
        {
            "pairs": "Count the preference pairs by source, and show the newest",
            "dead-letters": "Messages that could not become rows: list, show, replay, dismiss",
            "streams": "Topics and files of another shape: check",
            "backfill": "Store months of history from files or a topic, once however often it is run",
            "import": "Freeze a file as a dataset: Alpaca, ChatML, ShareGPT, CSV, TRL",
            "replay": "Run recorded conversations through the live gateway, as a real client would",
            "archive": "Move old feedback, but for edits, into compressed files that `hone backfill` can store again",
            "erase-user": "Forget a person: texts, feedback, pairs, dataset rows; models are marked",
            "keys": "Keys of the HTTP API: create, list, revoke",
        },
    ),
    "Training and models": (
        "hone.cli.models",
        {
            "models": "Model versions: list, show, add, override",
            "train": "Train here and now, in the foreground; the result is judged and registered, and gets no traffic",
            "sweep": "Train with other learning rates, batches, ranks …, and say which suit; FILE is such as "
            "configs/sweeps/dpo.toml",
            "retrain": "Ask for a retraining now; the DAG claims it",
            "requests": "Requests to retrain: list, cancel",
            "runs": "Training runs: list, show",
            "lineage": "Follow an answer back to the events that shaped its model",
        },
    ),
    "Planning": (
        "hone.cli.plan",
        {
            "plan": "Say what to train from these labels on this hardware, why, whether it fits, and what it costs",
        },
    ),
    "Live traffic": (
        "hone.cli.rollout",
        {
            "rollout": "Rollouts: plan, start, approve, list, ledger, status, watch, pause, resume, promote, rollback",
        },
    ),
}
"""Section -> module, and its commands with the first sentence of their help."""


class Sections(click.Group):
    """Lists the commands by section, imports the one that is used, and turns a HoneError into one line and code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names, in the order of the sections."""
        return [name for _, commands in SECTIONS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command."""
        for module, names in SECTIONS.values():
            if cmd_name in names:
                found: tuple[click.Command, ...] = import_module(module).commands
                return next(command for command in found if command.name == cmd_name)
        return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one block for each section, in the order of the loop."""
        width = max(map(len, self.list_commands(ctx)))
        for title, (_, commands) in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), text) for name, text in commands.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; errors of hone end it without a traceback."""
        try:
            return super().invoke(ctx)
        except HoneError as error:
            click.secho(f"hone: {error}", fg="red", err=True)
            sys.exit(1)


@click.group(cls=Sections, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="hone")
def cli() -> None:
    """Turn what people do with a chat model's answers into a better model, continuously and safely."""
