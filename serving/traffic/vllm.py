"""Traffic split by our own gateways over one vLLM engine: the base once, and each version beside it as an adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from hone.errors import ConfigError, Retryable
from serving.runtime.vllm import load, served, unload
from serving.traffic.local import LocalTraffic


class VllmTraffic(LocalTraffic):
    """As `LocalTraffic`; versions are loaded and unloaded as vLLM does it. The engine's base is nobody's to unload."""

    def prepare(self, model_version: str, directory: str) -> None:
        """Load the version's adapter in the engine; returns when it answers."""
        with self._engine(f"load {model_version}") as engine:
            load(engine, model_version, Path(directory))

    def teardown(self, model_version: str) -> None:
        """Unload the version's adapter in the engine."""
        with self._engine(f"unload {model_version}") as engine:
            unload(engine, model_version)

    def _models(self) -> frozenset[str]:
        """Return the versions that the engine serves, its base with them; none where it does not answer."""
        try:
            with self._engine("name its models") as engine:
                return frozenset(served(engine))
        except Retryable:
            return frozenset()

    @contextmanager
    def _engine(self, what: str) -> Iterator[httpx.Client]:
        """Give a client of the engine, which never sees our keys; what it refuses is tried again at the next look."""
        with httpx.Client(base_url=self.runtime, trust_env=False) as client:
            try:
                yield client
            except ConfigError as error:
                raise Retryable(f"vLLM at {self.runtime} did not {what}: {error}") from None
