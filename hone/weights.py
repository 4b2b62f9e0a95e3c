"""The name of a model is the content of its weights: `m-` and the first 12 hex digits of their digest."""

from pathlib import Path

from hone.canonical import canonical_json, sha256_file, sha256_hex
from hone.errors import ConfigError


def weights_digest(directory: Path) -> str:
    """Return the SHA-256 over names and hashes of the directory's safetensors files.

    Raises:
        ConfigError: there is none.
    """
    files = {path.name: sha256_file(path) for path in sorted(directory.glob("*.safetensors"))}
    if not files:
        raise ConfigError(f"no *.safetensors in {directory}: give a transformers model directory")
    return sha256_hex(canonical_json(files))


def model_version_of(digest: str) -> str:
    """Return the version that names weights of this digest."""
    return f"m-{digest[:12]}"
