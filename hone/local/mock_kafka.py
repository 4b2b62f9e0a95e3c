"""librdkafka's in-process broker as a program that other processes connect to: for the demo and tests without Java.

It keeps everything in memory (a ring of about 5 MB a partition), has no admin API and only the assignor `range`; each
start is a new, empty broker with a new incarnation. Nothing about loss is claimed on it.

    python -m hone.local.mock_kafka --ready-file F --topic hone.feedback.v1:4 --parent-pid P
"""

import ctypes
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

import click
import confluent_kafka
import msgspec

from hone.errors import HoneError
from hone.local.broker import Broker, cluster_id
from hone.local.processes import Program

PARENT_POLL_S = 0.5
_PRODUCER = 0


def mock_program(directory: Path, topics: Mapping[str, int], *, die_with: int | None = None) -> Program:
    """Return how to start the broker with these topics (name -> partitions); it ends when process `die_with` does."""
    ready_file = directory / "mock_kafka.json"
    argv = [sys.executable, "-m", "hone.local.mock_kafka", "--ready-file", str(ready_file)]
    argv += [f"--topic={name}:{partitions}" for name, partitions in topics.items()]
    argv += [f"--parent-pid={die_with}"] if die_with else []
    return Program(
        name="kafka",
        argv=tuple(argv),
        log_path=directory / "mock_kafka.log",
        ready=lambda: _is_up(ready_file),
        deadline_s=30,
        foundation=True,
    )


def mock_broker(directory: Path) -> Broker:
    """Describe the broker that was started in `directory` last.

    Raises:
        HoneError: none was started there.
    """
    try:
        return msgspec.json.decode((directory / "mock_kafka.json").read_bytes(), type=Broker)
    except FileNotFoundError:
        raise HoneError(f"no in-process broker was started in {directory}") from None


class MockCluster:
    """One broker on a free loopback port for as long as the object lives; `close` ends it.

    Plain `ctypes` on the librdkafka that confluent-kafka brings: the Python client cannot set a topic's partitions or
    the group's rebalance delay (3 s by default).
    """

    def __init__(self, topics: Mapping[str, int]) -> None:
        self._lib = _librdkafka()
        error = ctypes.create_string_buffer(512)
        self._client = self._lib.rd_kafka_new(_PRODUCER, None, error, len(error))
        if not self._client:
            raise HoneError(f"librdkafka could not start: {error.value.decode()}")
        self._cluster = self._lib.rd_kafka_mock_cluster_new(self._client, 1)
        if not self._cluster:
            raise HoneError("librdkafka's in-process broker could not listen on a loopback port")
        self._lib.rd_kafka_mock_group_initial_rebalance_delay_ms(self._cluster, 0)
        for name, partitions in topics.items():
            if code := self._lib.rd_kafka_mock_topic_create(self._cluster, name.encode(), partitions, 1):
                raise HoneError(f"in-process broker: topic {name} with {partitions} partitions: error {code}")

    @property
    def bootstrap_servers(self) -> str:
        """Return host:port."""
        return str(self._lib.rd_kafka_mock_cluster_bootstraps(self._cluster).decode())

    def close(self) -> None:
        """End the broker; its messages are gone."""
        self._lib.rd_kafka_mock_cluster_destroy(self._cluster)
        self._lib.rd_kafka_destroy(self._client)


def _librdkafka() -> ctypes.CDLL:
    """Load the library of the wheel, whose file name carries a hash, and declare what is used of it."""
    package = Path(confluent_kafka.__file__).parent
    places = (package.parent / "confluent_kafka.libs", package / ".dylibs")
    path = next((file for place in places for file in place.glob("librdkafka*")), None)
    if not path:
        raise HoneError(f"no librdkafka beside {package}: reinstall confluent-kafka from its wheel")
    lib = ctypes.CDLL(str(path))
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    signatures: dict[str, tuple[type | None, list[type]]] = {
        "rd_kafka_new": (pointer, [number, pointer, text, ctypes.c_size_t]),
        "rd_kafka_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_new": (pointer, [pointer, number]),
        "rd_kafka_mock_cluster_destroy": (None, [pointer]),
        "rd_kafka_mock_cluster_bootstraps": (text, [pointer]),
        "rd_kafka_mock_topic_create": (number, [pointer, text, number, number]),
        "rd_kafka_mock_group_initial_rebalance_delay_ms": (None, [pointer, ctypes.c_int32]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def _is_up(ready_file: Path) -> bool:
    if not ready_file.exists():
        return False
    return cluster_id(json.loads(ready_file.read_text())["bootstrap_servers"]) is not None


def _write_ready_file(path: Path, broker: Broker) -> None:
    draft = path.with_suffix(".tmp")
    draft.write_bytes(msgspec.json.encode(broker))
    draft.replace(path)


@click.command()
@click.option("--ready-file", type=click.Path(path_type=Path), required=True, help="Written once it listens: JSON.")
@click.option("--topic", "topics", multiple=True, help="NAME:PARTITIONS, may be repeated.")
@click.option("--parent-pid", type=int, help="End when this parent process does.")
def main(ready_file: Path, topics: tuple[str, ...], parent_pid: int | None) -> None:
    """Run the in-process broker until SIGTERM or the end of the parent."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    ready_file.unlink(missing_ok=True)
    pairs = (topic.rsplit(":", 1) for topic in topics)
    cluster = MockCluster({name: int(partitions) for name, partitions in pairs})
    version = confluent_kafka.libversion()[0]
    _write_ready_file(ready_file, Broker(cluster.bootstrap_servers, "librdkafka-mock", version, False, uuid4().hex))
    while not stop.wait(PARENT_POLL_S) and parent_pid in (None, os.getppid()):
        pass
    ready_file.unlink(missing_ok=True)
    cluster.close()


if __name__ == "__main__":
    main()
