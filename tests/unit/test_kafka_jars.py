"""Deciding whether a real broker can be had, and failing clearly where it cannot."""

from pathlib import Path

import pytest

from hone.errors import HoneError
from hone.local import kafka, maven

JAVA_17 = "#!/bin/sh\necho 'openjdk version \"17.0.15\" 2025-04-15' >&2\n"
JAVA_8 = "#!/bin/sh\necho 'java version \"1.8.0_292\"' >&2\n"
OFFLINE_MAVEN = "#!/bin/sh\necho '[ERROR] Could not transfer artifact: unknown host'\nexit 1\n"


@pytest.fixture
def bin_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on the path."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def install(bin_dir: Path, name: str, script: str) -> None:
    (bin_dir / name).write_text(script)
    (bin_dir / name).chmod(0o755)


def complete_jars(tmp_path: Path) -> Path:
    libs = tmp_path / "libs"
    libs.mkdir()
    (libs / "DONE").write_text(maven.pom_hash(kafka.POM))
    return libs


def test_no_java_is_an_obstacle_even_with_jars(bin_dir: Path, tmp_path: Path) -> None:
    assert kafka.java_version() is None
    assert "needs Java 17 or newer, found none" in str(kafka.obstacle(complete_jars(tmp_path)))


def test_an_old_java_is_an_obstacle(bin_dir: Path, tmp_path: Path) -> None:
    install(bin_dir, "java", JAVA_8)
    assert kafka.java_version() == 8
    assert "found 8" in str(kafka.obstacle(complete_jars(tmp_path)))


def test_java_17_needs_jars_or_maven(bin_dir: Path, tmp_path: Path) -> None:
    install(bin_dir, "java", JAVA_17)
    assert "no mvn to fetch them" in str(kafka.obstacle(tmp_path / "libs"))
    install(bin_dir, "mvn", OFFLINE_MAVEN)
    assert kafka.obstacle(tmp_path / "libs") is None
    (bin_dir / "mvn").unlink()
    assert kafka.obstacle(complete_jars(tmp_path)) is None


def test_jars_of_another_pom_do_not_count(tmp_path: Path) -> None:
    libs = complete_jars(tmp_path)
    assert kafka.jars_available(libs)
    (libs / "DONE").write_text("0" * 64)
    assert not kafka.jars_available(libs)


def test_fetching_without_maven_says_what_to_install(bin_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(HoneError, match="install Maven"):
        kafka.fetch_jars(tmp_path / "libs")


def test_a_failed_fetch_shows_why_and_leaves_the_old_jars(bin_dir: Path, tmp_path: Path) -> None:
    install(bin_dir, "mvn", OFFLINE_MAVEN)
    libs = tmp_path / "libs"
    libs.mkdir()
    (libs / "kafka-clients-3.9.0.jar").write_text("old")
    with pytest.raises(HoneError, match="unknown host"):
        kafka.fetch_jars(libs)
    assert [path.name for path in tmp_path.iterdir() if path.name != "bin"] == ["libs"]
    assert kafka.kafka_version(libs) == "3.9.0"


def test_fetched_jars_replace_the_old_ones_and_are_reported(
    bin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    maven = '#!/bin/sh\nfor a; do case "$a" in -DoutputDirectory=*) d="${a#*=}";; esac; done\n'
    install(bin_dir, "mvn", maven + 'mkdir -p "$d"\necho jar > "$d/kafka-clients-4.3.1.jar"\n')
    monkeypatch.setenv("PATH", f"{bin_dir}:/bin:/usr/bin")
    libs = tmp_path / "libs"
    libs.mkdir()
    (libs / "kafka-clients-3.9.0.jar").write_text("old")
    kafka.fetch_jars(libs)
    assert kafka.jars_available(libs)
    assert kafka.kafka_version(libs) == "4.3.1"
    assert f"Kafka 4.3.1: 1 jars, 0 MB, in {libs}" in capsys.readouterr().out


def test_the_broker_listens_on_its_loopback_ports_only(tmp_path: Path) -> None:
    settings = kafka.server_properties(tmp_path, 19092, 19093).splitlines()
    assert "listeners=PLAINTEXT://127.0.0.1:19092,CONTROLLER://127.0.0.1:19093" in settings
    assert "controller.quorum.voters=1@127.0.0.1:19093" in settings
    assert not [line for line in settings if "0.0.0.0" in line], "loopback only"
