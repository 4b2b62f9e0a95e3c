"""Starts `python -m training …` as forks of one process that has imported everything, so that tests may start many.

`fork_server(folder)` gives an executable that stands for HONE_TRAINING_PYTHON: it is started and waited for as one
that runs by itself, takes the same words, and ends with the same code; SIGTERM ends its fork. If it is killed its
fork lives on, as the child of a killed process does.
"""

import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parents[2]
PREFIX = ["-m", "training"]
STARTED_S = 120.0

CLIENT = """#!{python} -S
import json, os, signal, socket, struct, sys
place = socket.socket(socket.AF_UNIX)
place.connect({socket!r})
asked = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(place, [struct.pack("i", len(asked))], [1, 2])
place.sendall(asked)
child = struct.unpack("i", place.recv(4))[0]
signal.signal(signal.SIGTERM, lambda number, _: (os.kill(child, number), os._exit(143)))
code = place.recv(4)
sys.exit(struct.unpack("i", code)[0] if code else 137)
"""


@contextmanager
def fork_server(folder: Path) -> Iterator[Path]:
    """Give the executable while the server runs."""
    address, client = folder / "fork.sock", folder / "training-python"
    client.write_text(CLIENT.format(python=sys.executable, socket=str(address)))
    client.chmod(0o755)
    command = [sys.executable, "-m", "tests.support.fork_server", str(address)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE) as server:
        deadline = time.monotonic() + STARTED_S
        while not address.exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        try:
            yield client
        finally:
            server.terminate()


def serve(address: str) -> None:
    """Fork once for each connection."""
    import torch

    import training.__main__
    import training.run
    import training.sweep.run
    import training.trl_dpo  # noqa: F401

    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            work(connection)
        connection.close()


def work(connection: socket.socket) -> None:
    """Be the process that was asked for, and end."""
    import json

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    head, files, _, _ = socket.recv_fds(connection, 4, 2)
    text = b""
    while len(text) < struct.unpack("i", head)[0]:
        text += connection.recv(1 << 16)
    words, environment, folder = json.loads(text)
    assert words[:2] == PREFIX
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    connection.sendall(struct.pack("i", os.getpid()))
    code = 1
    try:
        code = sys.modules["training.__main__"].main(words[2:])
    except BaseException:
        logging.exception("the program failed")
    finally:
        sys.stdout.flush()
        with suppress(OSError):
            connection.sendall(struct.pack("i", code))
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
