"""The servers of the gateway's benchmark, started when first needed, and what is read of them: CPU, memory, answers."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import msgspec
import psutil

from benchmarks.gateway_load import Done, Job
from benchmarks.gateway_servers import ADMIN_KEY, CHAT_PATH, IDENTITY_KEY, TOKEN_KEYS
from hone.ids import uuid7
from hone.local.broker import create_topics
from hone.local.kafka import KafkaServer, fetch_jars, prepare_kafka
from hone.local.processes import Program, Supervisor
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC
from hone.tokens import Claims, parse_keys

ROOT = Path(__file__).parents[1]
KAFKA_LIBS = ROOT / "var" / "kafka" / "libs"
LITELLM = ROOT / "var" / "litellm"
LITELLM_VERSION = "1.108.7"
LOAD_TIMEOUT_S = 400


@dataclass
class World:
    """Everything that runs; each server on a port of its own."""

    supervisor: Supervisor
    directory: Path
    kafka: KafkaServer
    ports: dict[str, int] = field(default_factory=dict)

    def server(self, name: str, *more: str) -> str:
        """Start one of `benchmarks.gateway_servers`, once; return its name."""
        if name not in self.ports:
            port = free_port()
            argv = (sys.executable, "-m", "benchmarks.gateway_servers", name, str(port), *more)
            self.start(name, port, argv, {})
        return name

    def gateway(self, name: str = "gateway", model: str = "m-1") -> str:
        """Start the gateway, once, with the benchmark's model server as its runtime and the real broker."""
        if name in self.ports:
            return name
        self.server("upstream")
        port = free_port()
        env = {
            "HONE_TOKEN_KEYS": TOKEN_KEYS,
            "HONE_IDENTITY_KEY": IDENTITY_KEY,
            "HONE_ADMIN_KEY": ADMIN_KEY,
            "HONE_KAFKA_BOOTSTRAP_SERVERS": self.kafka.bootstrap_servers,
            "HONE_RUNTIME_URL": self.url("upstream"),
            "HONE_STABLE_MODEL": model,
            "HONE_VAR_DIR": str(self.directory / name),
            "HONE_DATABASE_URL": "postgresql+psycopg2://nobody@127.0.0.1:9/none",
            "HONE_GATEWAY__PRODUCE_TIMEOUT_S": "2",
        }
        self.start(name, port, (sys.executable, "-m", "serving", "gateway", "--port", str(port)), env)
        return name

    def litellm(self) -> str:
        """Start LiteLLM's proxy from its own environment, once."""
        if "litellm" not in self.ports:
            port, config = free_port(), self.directory / "litellm.yaml"
            upstream = f"{self.url('upstream')}/v1"
            route = {"model": "openai/some", "api_base": upstream, "api_key": "none"}
            config.write_text(json.dumps({"model_list": [{"model_name": "hone", "litellm_params": route}]}))
            env = {
                "LITELLM_MASTER_KEY": ADMIN_KEY,
                "LITELLM_TELEMETRY": "False",
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            }
            argv = (
                str(LITELLM / "bin" / "litellm"),
                "--config",
                str(config),
                "--port",
                str(port),
                "--host",
                "127.0.0.1",
            )
            self.start("litellm", port, argv, env)
        return "litellm"

    def start(self, name: str, port: int, argv: tuple[str, ...], env: dict[str, str]) -> None:
        """Start a program that listens on `port`, and wait for that."""
        program = Program(
            name=name,
            argv=argv,
            env={"PYTHONUNBUFFERED": "1"} | env,
            log_path=self.directory / f"{name}.log",
            cwd=ROOT,
            ready=lambda: listens(port),
            deadline_s=180,
        )
        self.ports[name] = port
        self.supervisor.start(program)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    def process(self, name: str) -> psutil.Process:
        (found,) = [running for running in self.supervisor.running if running.name == name]
        return psutil.Process(found.process.pid)

    def cpu_s(self, name: str) -> float:
        """Return the CPU seconds of a server so far, all threads and children."""
        root = self.process(name)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(time.user + time.system for time in times)

    def load(self, name: str, job: Job) -> Done:
        """Do a job against a server, from another process."""
        file = self.directory / "job.json"
        file.write_bytes(msgspec.json.encode(job))
        argv = [sys.executable, "-m", "benchmarks.gateway_load", str(self.ports[name]), str(file)]
        out = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=LOAD_TIMEOUT_S)
        done = msgspec.json.decode(out.stdout, type=Done)
        wrong = {status: number for status, number in done.statuses.items() if status not in (200, 202)}
        if wrong:
            raise RuntimeError(f"{name} answered {wrong} of {done.number}: read {self.directory}/{name}.log")
        return done


@contextmanager
def world() -> Iterator[World]:
    """Start the broker in a folder of its own, and leave nothing behind."""
    fetch_jars(KAFKA_LIBS)
    with tempfile.TemporaryDirectory(prefix="hone-bench-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        with Supervisor(directory / "stack.json") as supervisor:
            kafka = prepare_kafka(directory / "kafka", KAFKA_LIBS)
            supervisor.start(kafka.program(directory / "kafka.log"))
            create_topics(kafka.broker(), {FEEDBACK_TOPIC: 1, RESPONSES_TOPIC: 1})
            yield World(supervisor, directory, kafka)


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def install_litellm() -> None:
    """Make LiteLLM's environment, once: its pins clash with ours."""
    if (LITELLM / "bin" / "litellm").exists():
        return
    uv = ROOT / "var" / "uv" / "bin" / "uv"
    program = str(uv) if uv.exists() else "uv"
    subprocess.run([program, "venv", "-q", str(LITELLM), "--python", sys.executable], check=True, stdout=sys.stderr)
    wanted = ["pip", "install", "-q", "--python", str(LITELLM / "bin" / "python"), f"litellm[proxy]=={LITELLM_VERSION}"]
    subprocess.run([program, *wanted], check=True, stdout=sys.stderr, env=os.environ | {"UV_HTTP_TIMEOUT": "300"})


def token() -> str:
    """Return the id of an answer that nobody gave: only its signature is looked at."""
    now = datetime.now(UTC)
    return parse_keys(TOKEN_KEYS).mint(Claims(uuid4(), uuid4(), uuid4(), uuid4(), now + timedelta(days=30)))


def feedback_body() -> str:
    """Return one act with all seven fields, some 330 bytes."""
    act = {"response_id": token(), "kind": "thumbs", "event_id": str(uuid7()), "value": -1}
    act |= {"reasons": ["wrong", "too long"], "occurred_at": datetime.now(UTC).isoformat(), "name": None}
    return json.dumps(act)


def feedback_job(number: int) -> Job:
    """Return acts from 16 people at once."""
    bodies = [feedback_body() for _ in range(500)]
    return Job("/v1/feedback", bodies, connections=16, number=number)


def chat_job(number: int, *, chunks: int, pause_us: int = 0, connections: int = 1, stream: bool = True) -> Job:
    """Return chats whose answers come in so many chunks, one every `pause_us`."""
    messages = [{"role": "system", "content": "You answer the customers of a shop."}]
    messages += [{"role": "user", "content": "Where is my order? It should have come on Monday. " * 4}]
    body = {"model": "hone", "messages": messages, "max_tokens": chunks, "seed": pause_us, "stream": stream}
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    bodies = [json.dumps(body | {"user": f"user-{n}"}) for n in range(200)]
    return Job(CHAT_PATH, bodies, headers, connections=connections, number=number)
