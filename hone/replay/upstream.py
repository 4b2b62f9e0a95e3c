"""A small OpenAI-compatible server that gives the recorded answers: standard library only, so the bare wheel has it.

Which answer is meant stands in the request's `metadata`: the row's id and the position of the answer.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from hone.replay.recording import Recording

ROW_FIELD, ANSWER_FIELD = "replay_row", "replay_answer"


class Server(ThreadingHTTPServer):
    """Holds the recordings by their ids."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, recordings: Mapping[str, Recording]) -> None:
        super().__init__((host, 0), Handler)
        self.recordings = recordings


class Handler(BaseHTTPRequestHandler):
    """Answers `POST /v1/chat/completions` and `GET /v1/models`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Server

    def do_GET(self) -> None:
        """Name the one model."""
        self.reply(200, {"object": "list", "data": [{"id": "recorded", "object": "model", "created": 0}]})

    def do_POST(self) -> None:
        """Give the recorded answer, or 404 for one that is not in the file."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            request = json.loads(body)
            metadata = request["metadata"]
            answer = self.server.recordings[metadata[ROW_FIELD]].responses[int(metadata[ANSWER_FIELD])]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return self.reply(404, {"error": {"message": f"no recorded answer for this request ({error!r})"}})
        self.reply(200, completion(answer.text, str(request.get("model", "recorded"))))

    def reply(self, status: int, document: Mapping[str, Any]) -> None:
        """Send JSON."""
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the gateway counts requests."""


def completion(text: str, model: str) -> dict[str, Any]:
    """Return the text as OpenAI's API would; tokens are not known, so no usage is claimed."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {
        "id": "recorded",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [choice],
    }


@contextmanager
def serve_recordings(recordings: Mapping[str, Recording], host: str = "127.0.0.1") -> Iterator[str]:
    """Serve the answers on a free port until the block ends; gives the server's address."""
    server = Server(host, recordings)
    thread = threading.Thread(target=server.serve_forever, name="recorded-upstream", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
