"""`python -m hone.cli`: the same as `hone`."""

from hone.cli import cli

cli(prog_name="hone")
