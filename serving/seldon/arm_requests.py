"""The counter of MLServer's arms; apart, since MLServer loads a model's own module anew for each model."""

from functools import cache

from prometheus_client import Counter


@cache
def arm_requests() -> Counter:
    """Return the counter of this process; without parallel workers MLServer serves only the default registry."""
    return Counter("hone_arm_requests", "Requests that reached an arm.", ["version", "keyed"])
