"""schemathesis against the running gateway and its committed OpenAPI file: no answer that the file does not allow."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway import KEY, ForeignServer, gateway
from tests.support.web import serving

FILE = Path(__file__).parents[2] / "docs" / "openapi.json"
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance"),
    *("response_headers_conformance", "negative_data_rejection", "unsupported_method", "ignored_auth"),
)
SEED = 20261124


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path, store_url: str) -> None:
    options = [f"--header=Authorization: Bearer {KEY}", f"--checks={','.join(CHECKS)}", "--max-examples=8"]
    options += [f"--seed={SEED}", "--phases=examples,coverage,fuzzing", "--generation-database=none", "--no-color"]
    with serving(ForeignServer(["hi"])) as upstream, gateway(tmp_path, upstream, database_url=store_url) as served:
        words = [sys.executable, "-m", "schemathesis.cli", "run", str(FILE), f"--url={served.url}", *options]
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-60_000:] + done.stderr[-2000:]
