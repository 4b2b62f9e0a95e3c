"""The name of a model is the content of its weights: `m-` and the first 12 hex digits of their digest.

An adapter's directory names the base that it lies on in `base.json`; the base's digest is then part of its own.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from hone.canonical import canonical_json, sha256_file, sha256_hex
from hone.errors import ConfigError

BASE = "base.json"
INDEX = "model.safetensors.index.json"
"""Which tensor lies in which shard, where a model has several."""


@dataclass(frozen=True, slots=True)
class AdapterBase:
    """The whole weights that an adapter lies on."""

    digest: str
    directory: Path

    @property
    def model_version(self) -> str:
        """The base's own name."""
        return model_version_of(self.digest)

    def write(self, directory: Path) -> None:
        """Leave it in an adapter's directory."""
        facts = asdict(self) | {"directory": str(self.directory), "model_version": self.model_version}
        (directory / BASE).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def weights_digest(directory: Path) -> str:
    """Return the SHA-256 over names and hashes of the safetensors files, be they shards, and of an adapter's base.

    Raises:
        ConfigError: there is none, or one that the index of shards names is missing.
    """
    files = {path.name: sha256_file(path) for path in sorted(directory.glob("*.safetensors"))}
    if not files:
        raise ConfigError(f"no *.safetensors in {directory}: give a transformers model directory")
    missing = shards_of(directory) - files.keys()
    if missing:
        raise ConfigError(f"{len(missing)} of {directory}'s shards are missing, such as {min(missing)}: copy it again")
    base = read_base(directory)
    return sha256_hex(canonical_json({**files, BASE: base.digest} if base else files))


def read_base(directory: Path) -> AdapterBase | None:
    """Return what the directory's adapter lies on; None: it says nothing of it, or holds whole weights.

    Raises:
        ConfigError: what it says cannot be read.
    """
    path = directory / BASE
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        return AdapterBase(str(facts["digest"]), Path(facts["directory"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} does not name a base ({error!r}): export the adapter again") from None


def checked_base(directory: Path) -> AdapterBase | None:
    """Return the same, once the base's weights were found to be those that the adapter was trained on.

    Raises:
        ConfigError: they are gone, or others.
    """
    base = read_base(directory)
    if base is not None and (found := weights_digest(base.directory)) != base.digest:
        raise ConfigError(
            f"the adapter in {directory} lies on {base.model_version}, but {base.directory} holds "
            f"{model_version_of(found)}: put that base back, or correct `directory` in {BASE}"
        )
    return base


def shards_of(directory: Path) -> set[str]:
    """Return the files that the index of a sharded model names; none where the model has no index."""
    index = directory / INDEX
    try:
        return set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else set()
    except (ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{index} is no index of shards ({error!r}): copy it again") from None


def model_version_of(digest: str) -> str:
    """Return the version that names weights of this digest."""
    return f"m-{digest[:12]}"
