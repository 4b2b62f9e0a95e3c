"""How many requests reached the arms past the gateways, as Prometheus counted them."""

from collections.abc import Callable, Mapping

import httpx
import msgspec

QUERY = 'sum by (version) (hone_arm_requests_total{keyed="false"})'
TIMEOUT_S = 2.0

CountUnkeyed = Callable[[], Mapping[str, int] | None]


class Sample(msgspec.Struct, frozen=True):
    """One series of an instant query."""

    metric: dict[str, str]
    value: tuple[float, str]


class Data(msgspec.Struct, frozen=True):
    """The result of a query."""

    result: tuple[Sample, ...]


class Answer(msgspec.Struct, frozen=True):
    """Body of `GET /api/v1/query`."""

    data: Data


def count_unkeyed(prometheus_url: str | None, transport: httpx.BaseTransport | None = None) -> CountUnkeyed:
    """Return a function that asks Prometheus; it returns None where there is none, or no answer: unknown is not 0."""
    client = httpx.Client(timeout=TIMEOUT_S, transport=transport)

    def count() -> Mapping[str, int] | None:
        if prometheus_url is None:
            return None
        try:
            answer = client.get(f"{prometheus_url.rstrip('/')}/api/v1/query", params={"query": QUERY})
            samples = msgspec.json.decode(answer.raise_for_status().content, type=Answer).data.result
        except (httpx.HTTPError, msgspec.DecodeError):
            return None
        return {sample.metric.get("version", ""): int(float(sample.value[1])) for sample in samples}

    return count
