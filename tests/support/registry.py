"""A Schema Registry on loopback: the two routes that a consumer uses, in the shape that Confluent documents.

No real registry can be had here: it stands for one towards confluent-kafka's own client, and is no proof about another.
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.protobuf import descriptor_pb2

Type = descriptor_pb2.FieldDescriptorProto


@dataclass
class Registry:
    """`schemas` by number; `asked` is every path that was served."""

    url: str = ""
    schemas: dict[int, dict[str, Any]] = field(default_factory=dict)
    subjects: dict[tuple[str, int], int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int = 200

    def add_avro(self, number: int, schema: dict[str, Any]) -> None:
        self.schemas[number] = {"schema": json.dumps(schema), "schemaType": "AVRO"}

    def add_protobuf(self, number: int, file: Any, **references: tuple[str, str, int]) -> None:
        names = [{"name": n, "subject": s, "version": v} for n, s, v in references.values()]
        text = base64.b64encode(file.SerializeToString()).decode()
        self.schemas[number] = {"schema": text, "schemaType": "PROTOBUF", "references": names}

    def find(self, path: str) -> dict[str, Any] | None:
        parts = urlsplit(path).path.strip("/").split("/")
        if parts[:2] == ["schemas", "ids"]:
            found = self.schemas.get(int(parts[2]))
            serialized = parse_qs(urlsplit(path).query).get("format") == ["serialized"]
            assert found is None or serialized == (found["schemaType"] == "PROTOBUF")
            return found
        number = self.subjects.get((parts[1], int(parts[3])))
        found = {"subject": parts[1], "version": int(parts[3]), "id": number, **self.schemas.get(number or 0, {})}
        return found if number else None


@contextmanager
def registry() -> Iterator[Registry]:
    held = Registry()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            held.asked.append(self.path)
            found = held.find(self.path)
            status = held.status if held.status != 200 else 200 if found else 404
            error = {"error_code": status * 100 + 3, "message": "Schema not found"}
            body = json.dumps(found if status == 200 else error).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        held.url = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield held
        server.shutdown()


def framed(number: int, body: bytes, indexes: bytes = b"") -> bytes:
    """A body behind the number of its schema."""
    return b"\0" + number.to_bytes(4, "big") + indexes + body


def rating_file() -> Any:
    """The descriptor of `acme.Envelope { Who by = 1; message Rating {…} }`, with an import and a nested message."""
    file = descriptor_pb2.FileDescriptorProto(name="rating.proto", package="acme", syntax="proto3")
    file.dependency.extend(["who.proto", "google/protobuf/timestamp.proto"])
    outer = file.message_type.add(name="Envelope")
    rating = outer.nested_type.add(name="Rating")
    rating.field.add(name="on", number=1, type=Type.TYPE_STRING, label=1, json_name="on")
    rating.field.add(name="thumb_value", number=2, type=Type.TYPE_INT64, label=1, json_name="thumbValue")
    rating.field.add(name="by", number=3, type=Type.TYPE_MESSAGE, type_name=".acme.Who", label=1)
    stamp = ".google.protobuf.Timestamp"
    rating.field.add(name="at", number=4, type=Type.TYPE_MESSAGE, type_name=stamp, label=1)
    return file


def who_file() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="who.proto", package="acme", syntax="proto3")
    file.message_type.add(name="Who").field.add(name="name", number=1, type=Type.TYPE_STRING, label=1)
    return file
