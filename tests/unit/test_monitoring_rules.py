"""Rules, dashboard, metrics and docs/monitoring.md say the same."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from hone import metrics
from hone.cli import cli
from monitoring.board.dashboard import ENDED, ROWS
from tests.support.promql import ROOT, RULE_FILES, alerts, rules, selectors, without_variables

PAGE = (ROOT / "docs" / "monitoring.md").read_text()
PROMTOOL_TESTS = sorted((ROOT / "monitoring" / "prometheus" / "tests").glob("*.yml"))
TARGETS = yaml.safe_load((ROOT / "monitoring" / "prometheus" / "targets.json").read_text())
JOBS = {group["labels"]["job"] for group in TARGETS}
PANELS = [panel for row in ROWS for panel in row.panels]
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def declared() -> Iterator[tuple[str, MetricWrapperBase, set[str]]]:
    """Each metric's name as written, itself, and the names of its samples."""
    for metric in vars(metrics).values():
        if isinstance(metric, MetricWrapperBase):
            described = next(iter(metric.describe()))
            name = f"{described.name}_total" if isinstance(metric, Counter) else described.name
            parts = {f"{name}_{part}" for part in ("bucket", "sum", "count")}
            yield name, metric, parts if isinstance(metric, Histogram) else {name}


METRICS = {name: (metric, samples) for name, metric, samples in declared()}
NAME_OF_SAMPLE = {sample: name for name, (_, samples) in METRICS.items() for sample in samples}
ROWS_OF_PAGE = {
    name: (program, labels, meaning)
    for name, program, labels, meaning in re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \| (.+) \|$", PAGE, re.M)
}
EXPRESSIONS = [str(rule["expr"]) for rule in rules()] + [
    without_variables(expr) for expr in [ENDED, *(query.expr for panel in PANELS for query in panel.queries)]
]


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_expression_parses_and_reads_only_what_exists_of_the_program_that_has_it(expr: str) -> None:
    for selector in selectors(expr):
        if selector.metric == "up" or selector.metric in RECORDED:
            continue
        name = NAME_OF_SAMPLE[selector.metric]
        assert selector.values("job") == {ROWS_OF_PAGE[name][0]}
        known = {*METRICS[name][0]._labelnames, "job", "instance", "le"}
        assert {label for label, _ in selector.labels} <= known


def test_every_metric_is_read_by_a_rule_or_a_panel() -> None:
    read = {NAME_OF_SAMPLE.get(selector.metric) for expr in EXPRESSIONS for selector in selectors(expr)}
    assert set(METRICS) - read == set()


def test_every_recorded_series_is_read() -> None:
    assert {selector.metric for expr in EXPRESSIONS for selector in selectors(expr)} >= RECORDED


def test_the_page_lists_every_metric_with_its_program_labels_and_meaning() -> None:
    found = {
        name: (ROWS_OF_PAGE.get(name, ("none",))[0], ", ".join(metric._labelnames), metric._documentation)
        for name, (metric, _) in METRICS.items()
    }
    assert found == ROWS_OF_PAGE
    assert {program for program, _, _ in ROWS_OF_PAGE.values()} == JOBS


def test_labels_never_name_a_person_an_answer_or_a_key() -> None:
    labels = {label for metric, _ in METRICS.values() for label in metric._labelnames}
    assert not labels & {"user", "user_id", "response_id", "conversation_id", "turn_id", "event_id", "api_key", "token"}


def test_a_fact_that_a_program_never_sets_is_absent_and_not_zero() -> None:
    registry = CollectorRegistry()
    fact = metrics.Fact("hone_fact", "What one program knows.", registry=registry)
    assert registry.get_sample_value("hone_fact") is None
    fact.set(0)
    assert registry.get_sample_value("hone_fact") == 0


@pytest.mark.parametrize("name", alerts())
def test_every_alert_says_what_happened_what_to_do_and_where_to_read_on(name: str) -> None:
    rule = alerts()[name]
    assert rule["labels"]["severity"] in {"page", "ticket", "info"}
    assert rule["annotations"]["summary"] and len(rule["annotations"]["description"]) > 20
    assert rule["annotations"]["runbook_url"] == f"docs/monitoring.md#{name.lower()}"
    section = re.search(rf"^### {name}\n\n(.+?)(?=\n#|\Z)", PAGE, re.M | re.S)
    assert section and len(section.group(1)) > 60


def test_the_page_has_no_alert_that_does_not_exist_and_counts_them_right() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE, re.M)) == set(alerts())
    assert f"{len(alerts())} alerts read it" in PAGE.replace("\n", " ")


@pytest.mark.parametrize("name", alerts())
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(name: str) -> None:
    fires, silent = False, False
    for case in promtool_cases():
        names = re.search(r'alertname=~?"([^"]+)"', case["expr"])
        assert names and "ALERTS" in case["expr"]
        if re.fullmatch(names.group(1), name):
            number = len(case.get("exp_samples", []))
            fires, silent = fires or number > 0, silent or number == 0
    assert fires, f"no test shows {name} firing"
    assert silent or shows_a_silent_series(name), f"no test shows {name} silent"


def promtool_cases() -> Iterator[dict[str, Any]]:
    for path in PROMTOOL_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            yield from test["promql_expr_test"]


def shows_a_silent_series(name: str) -> bool:
    """Whether a test has two instances of the alert's metric of which only one fires."""
    for path in PROMTOOL_TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["promql_expr_test"]:
                if name in case["expr"] and " by (instance)" in case["expr"]:
                    return len(case["exp_samples"]) < len(test["input_series"])
    return False


def test_every_rule_file_is_under_test() -> None:
    named = {Path(file).name for path in PROMTOOL_TESTS for file in yaml.safe_load(path.read_text())["rule_files"]}
    assert named == {path.name for path in RULE_FILES}


def texts() -> Iterator[str]:
    yield PAGE
    yield (ROOT / "docs" / "deploy.md").read_text()
    for rule in alerts().values():
        yield rule["annotations"]["description"]
    for panel in PANELS:
        yield panel.description


def test_every_command_that_a_text_advises_exists() -> None:
    advised = {command for text in texts() for command in re.findall(r"`hone ([a-z -]+)", text)}
    assert advised
    for words in advised:
        command: click.Command = cli
        for word in words.split():
            if isinstance(command, click.Group):
                found = command.get_command(click.Context(command), word)
                assert found, f"`hone {words}`"
                command = found
            elif word.startswith("--"):
                assert any(word in option.opts for option in command.params), f"`hone {words}`"
