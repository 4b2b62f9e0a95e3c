"""Every command and every setting is documented, and what is documented exists."""

import json
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from pydantic_core import PydanticUndefined

from hone.cli import SECTIONS, cli
from hone.settings import Section, Settings

ROOT = Path(__file__).parents[2]
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text()
SETTINGS_PAGE = (ROOT / "docs" / "settings.md").read_text()
FROM_ELSEWHERE = {"training_python", "token_keys", "identity_key", "admin_key", "schema_registry_auth"}
"""Their default is not a constant worth showing."""


def leaves(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for below in command.list_commands(context):
            found = command.get_command(context, below)
            assert found
            yield from leaves(found, f"{name} {below}")
    else:
        yield name, command


COMMANDS = dict(leaves(cli, "hone"))


def section_of(name: str) -> str:
    found = re.search(rf"^### `{re.escape(name)}`\n(.*?)(?=^##|\Z)", CLI_PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"docs/cli.md has no section `{name}`"
    return found.group(1)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_each_of_its_options_is_documented(name: str) -> None:
    text = section_of(name)
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert any(f"{option}" in text for option in (*parameter.opts, *parameter.secondary_opts)), parameter.opts


def test_no_command_is_documented_that_does_not_exist() -> None:
    assert set(re.findall(r"^### `(.+)`$", CLI_PAGE, re.MULTILINE)) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does_and_every_option_is_explained(name: str) -> None:
    command = COMMANDS[name]
    assert command.help
    silent = [p.opts for p in command.params if isinstance(p, click.Option) and not (p.help or p.show_default)]
    assert not [opts for opts in silent if opts not in (["--mode"], ["--config"], ["--status"], ["--scope"])]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_list_of_commands_says_what_each_command_says_of_itself(section: str) -> None:
    for name, text in SECTIONS[section][1].items():
        command = cli.get_command(click.Context(cli), name)
        assert command
        assert command.get_short_help_str(limit=200).rstrip(".") == text


def test_every_command_that_a_message_or_page_names_exists() -> None:
    places = ["hone", "ingest", "serving", "training", "monitoring", "dags", "docs", "README.md"]
    found = subprocess.run(
        ["git", "grep", "-hoE", r"`hone [a-z][a-z -]*[^`]*`", "--", *places], cwd=ROOT, capture_output=True, text=True
    ).stdout
    unknown = [line for line in set(found.splitlines()) if not names_a_command(line.strip("`").split()[1:])]
    assert not unknown


def names_a_command(words: list[str]) -> bool:
    command: click.Command | None = cli
    for word in words:
        if not isinstance(command, click.Group) or word.startswith("-"):
            break
        command = command.get_command(click.Context(command), word)
        if command is None:
            return False
    return True


def settings() -> Iterator[tuple[str, Any]]:
    """Each key with its default."""
    for name, field in Settings.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, Section):
            yield from ((f"{name}.{key}", below.default) for key, below in table.model_fields.items())
        else:
            yield name, field.default


DEFAULTS = dict(settings())


def as_toml(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"`{json.dumps(list(value))}`"
    return f"`{json.dumps(str(value)) if isinstance(value, Path) else json.dumps(value)}`"


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_setting_is_documented_with_its_default_and_meaning(key: str) -> None:
    row = re.search(rf"^\| `{re.escape(key)}` \| (.+?) \| (.+) \|$", SETTINGS_PAGE, re.MULTILINE)
    assert row, f"docs/settings.md has no row `{key}`"
    assert DEFAULTS[key] is not PydanticUndefined
    if key not in FROM_ELSEWHERE:
        assert row.group(1) == as_toml(DEFAULTS[key])
    assert len(row.group(2)) > 10


def test_no_setting_is_documented_that_does_not_exist() -> None:
    assert set(re.findall(r"^\| `([\w.]+)` \|", SETTINGS_PAGE, re.MULTILINE)) == set(DEFAULTS)


def test_the_commented_configuration_holds_every_key_of_every_table_with_its_default() -> None:
    text = (ROOT / "configs" / "hone.toml").read_text()
    assert Settings(**tomllib.loads(text)) == Settings(), "as it stands it changes nothing"
    found = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    keys = {f"{table}.{key}" for table, values in found.items() if isinstance(values, dict) for key in values}
    assert keys == {key for key in DEFAULTS if "." in key}
    for key in keys:
        table, name = key.split(".")
        if DEFAULTS[key] is not None:
            assert json.dumps(found[table][name]) == as_toml(DEFAULTS[key]).strip("`")


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []
