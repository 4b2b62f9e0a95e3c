"""Model servers: the runtime that serves versions by name, and upstreams that an operator registered for a while."""

import asyncio
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import msgspec

from hone.records import Track
from hone.settings import Upstream
from serving.gateway.wire import Reply, Wire

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 2.0
HEALTH_TTL_S = 2.0
CHAT_PATH = "/v1/chat/completions"


class UpstreamFailed(Exception):
    """The model server gave no answer, not even its first byte. `status` is its own, or None if it gave none."""

    def __init__(self, status: int | None, detail: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(f"status {status}: {detail}" if status else detail)
        self.status, self.detail, self.retry_after_s = status, detail, retry_after_s


class Target(msgspec.Struct, frozen=True):
    """Where a version is asked for, and by which name."""

    url: str
    model: str
    echoes: bool
    "It is told id and name of the answer, so that it may give them itself."
    headers: Mapping[str, str] = {}


@dataclass(frozen=True)
class NamedUpstream:
    """A server that answers the requests whose `model` is its name, until it expires; outside of rollouts."""

    name: str
    url: str
    track: Track
    expires_at: float
    "Monotonic seconds."
    metadata: bool
    "Whether it is sent the request's `metadata`."

    def target(self) -> Target:
        """Return how to ask it: as somebody else's server, which hears no answer's id."""
        return Target(self.url, self.name, echoes=False)


def foreign(other: Upstream) -> Target:
    """Return how to ask somebody else's server."""
    key = other.api_key.get_secret_value()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return Target(other.url.rstrip("/"), other.model, echoes=False, headers=headers)


class Opened(msgspec.Struct, frozen=True):
    """An answer that has begun: its first bytes are here (all of them where it does not stream)."""

    reply: Reply
    first: bytes

    @property
    def echoes(self) -> bool:
        """Say whether id and model name are already those that we asked for."""
        return b"x-hone-echo" in self.reply.headers


class Upstreams:
    """The HTTP client of a gateway. Make it inside the event loop that uses it."""

    def __init__(
        self,
        runtime_url: str,
        timeout_s: float,
        others: Mapping[str, Upstream] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        is_hone: bool = True,
    ) -> None:
        """`is_hone`: the runtime is ours, and may hear an answer's id."""
        self._wire = Wire(connect_timeout_s=CONNECT_TIMEOUT_S, timeout_s=timeout_s)
        self.runtime_url, self._clock = runtime_url.rstrip("/"), clock
        self._others = {name: foreign(other) for name, other in (others or {}).items()}
        self._is_hone = is_hone
        self._named: dict[str, NamedUpstream] = {}
        self._failing: set[str] = set()
        self._healthy, self._checked_at = False, -HEALTH_TTL_S

    def register(self, name: str, url: str, track: Track, expires_in_s: float, *, metadata: bool = False) -> None:
        """Send requests for model `name` to `url` for a while; the same name again replaces it."""
        self._named[name] = NamedUpstream(name, url.rstrip("/"), track, self._clock() + expires_in_s, metadata)

    def named(self, model: str) -> NamedUpstream | None:
        """Return the live upstream of this name."""
        found = self._named.get(model)
        if found is not None and found.expires_at <= self._clock():
            del self._named[model]
            return None
        return found

    def names(self) -> list[str]:
        """Return the live names."""
        return [name for name in list(self._named) if self.named(name)]

    def target(self, model_version: str) -> Target:
        """Return who serves this version: somebody else where the settings say so, else the runtime."""
        return self._others.get(model_version) or Target(self.runtime_url, model_version, echoes=self._is_hone)

    async def open(self, target: Target, body: bytes, *, answer_id: str, model: str, stream: bool) -> Opened:
        """Send a chat request and wait for its first bytes, or for all of it. The caller closes the response.

        Only a server of ours hears the answer's id, which is a credential.

        Raises:
            UpstreamFailed: it refused, did not answer in time, or broke off before that.
        """
        headers = {"content-type": "application/json", "accept-encoding": "identity", **target.headers}
        if target.echoes:
            headers |= {"x-request-id": answer_id, "x-model-alias": header_safe(model)}
        try:
            reply = await self._wire.request("POST", target.url + CHAT_PATH, headers, body)
        except OSError as error:
            raise no_answer(error) from error
        streams = stream and reply.status == 200
        first = await (reading(reply, reply.some) if streams else reading(reply, reply.all))
        if reply.status != 200 or not first:
            reply.close()
            said = first[:2000].decode("utf-8", "replace") or "an empty answer"
            raise UpstreamFailed(reply.status, said, retry_after_s=retry_after_s(reply.headers))
        return Opened(reply, first)

    async def ask(self, method: str, url: str, headers: Mapping[str, str], body: bytes = b"") -> Reply:
        """Return the answer once its head is here. The caller reads it to its end or closes it.

        Raises:
            UpstreamFailed: there was none, or not in time.
        """
        try:
            return await self._wire.request(method, url, headers, body)
        except OSError as error:
            raise no_answer(error) from error

    def note(self, model_version: str, error: UpstreamFailed | None) -> None:
        """Log when a version begins to fail, and when it answers again; not each failure (metrics count those)."""
        if error is not None and model_version not in self._failing:
            self._failing.add(model_version)
            logger.warning("model %s fails: %s", model_version, error)
        elif error is None and model_version in self._failing:
            self._failing.discard(model_version)
            logger.info("model %s answers again", model_version)

    async def is_healthy(self) -> bool:
        """Say whether the runtime answered within the last two seconds."""
        if self._clock() - self._checked_at > HEALTH_TTL_S:
            self._healthy, self._checked_at = await self._answers(), self._clock()
        return self._healthy

    async def close(self) -> None:
        """Close every connection that is idle."""
        await self._wire.close()

    async def _answers(self) -> bool:
        return await self.is_there(f"{self.runtime_url}/v1/models")

    async def is_there(self, url: str) -> bool:
        """Say whether a GET is answered with 200, soon."""
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                reply = await self.ask("GET", url, {})
                await reading(reply, reply.all)
                return reply.status == 200
        except (UpstreamFailed, TimeoutError):
            return False


async def reading(reply: Reply, read: Callable[[], Awaitable[bytes]]) -> bytes:
    """Return what is read; where that fails or the caller leaves, the server stops.

    Raises:
        UpstreamFailed: it broke off, or went silent.
    """
    try:
        return await read()
    except OSError as error:
        reply.close()
        raise no_answer(error) from error
    except asyncio.CancelledError:
        reply.close()
        raise


def retry_after_s(headers: Mapping[bytes, bytes]) -> int | None:
    """Return the seconds that `Retry-After` asks for, in either of its forms (RFC 9110, 10.2.3); None without one."""
    value = headers.get(b"retry-after", b"").decode("latin-1").strip()
    if re.fullmatch("[0-9]{1,9}", value):
        return int(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    return max(0, math.ceil(at.replace(tzinfo=at.tzinfo or UTC).timestamp() - time.time()))


def no_answer(error: OSError) -> UpstreamFailed:
    """Return what the error means."""
    return UpstreamFailed(None, f"{type(error).__name__}: {error}")


def header_safe(text: str) -> str:
    """Return the name as a header may carry it."""
    return text if text.isascii() and text.isprintable() else re.sub("[^ -~]", "?", text)
