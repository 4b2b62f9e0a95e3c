"""What arms said and from which weights, read off the answers that pass through the stand-in."""

import hashlib
import json
from typing import Any, NamedTuple


class Spoken(NamedTuple):
    """One answer: the version that was asked, the digest of the weights that it answered from, and its text's hash."""

    version: str
    digest: str
    text_sha256: str


def spoken(version: str, body: bytes) -> Spoken | None:
    """Return what an arm said in either line's protocol, or None where the body holds no chat answer."""
    try:
        document = json.loads(body)
        if "jsonData" in document:
            digest, answer = document["meta"]["tags"]["digest"], document["jsonData"]
        else:
            digest, answer = document["parameters"]["digest"], json.loads(document["outputs"][0]["data"][0])
        return Spoken(version, digest, text_hash(answer["choices"][0]["message"]["content"]))
    except (ValueError, LookupError, TypeError):
        return None


def text_hash(text: str) -> str:
    """Return the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def as_rows(counts: dict[Spoken, int]) -> list[dict[str, Any]]:
    """Return what was said as rows for JSON."""
    return [{**said._asdict(), "num": number} for said, number in counts.items()]
