"""The traffic backend that the settings name."""

from contextlib import AbstractContextManager
from pathlib import Path

from hone.errors import ConfigError
from hone.settings import Settings
from serving.traffic.backend import TrafficBackend
from serving.traffic.kube_api import KubeApi
from serving.traffic.local import LocalTraffic
from serving.traffic.routers import Routers, router_urls
from serving.traffic.seldon_v1 import SeldonV1
from serving.traffic.seldon_v2 import SeldonV2
from serving.traffic.unkeyed import count_unkeyed
from serving.traffic.vllm import VllmTraffic


def open_backend(settings: Settings) -> AbstractContextManager[TrafficBackend]:
    """Return the backend; entering it opens nothing yet, leaving it closes its connections.

    Raises:
        ConfigError: a file of the cluster's credentials is missing.
    """
    if settings.traffic_backend == "local":
        return (VllmTraffic if settings.runtime_kind == "vllm" else LocalTraffic).from_settings(settings)
    seldon = settings.seldon
    gateways = Routers(router_urls(settings), settings.admin_key.get_secret_value())
    api = open_api(settings)
    count = count_unkeyed(seldon.prometheus_url)
    if settings.traffic_backend == "seldon_v1":
        return SeldonV1(gateways, api, seldon.name, image=seldon.image, count_unkeyed=count)
    return SeldonV2(gateways, api, seldon.name, storage_uri=seldon.storage_uri, count_unkeyed=count)


def open_api(settings: Settings) -> KubeApi:
    """Return a client of the Kubernetes API; over plain HTTP (`kubectl proxy`) it needs no credentials."""
    seldon = settings.seldon
    if not seldon.kubernetes_url.startswith("https:"):
        return KubeApi(seldon.kubernetes_url, seldon.namespace)
    for key, file in (("token_file", seldon.token_file), ("ca_file", seldon.ca_file)):
        require_file(key, file)
    return KubeApi(seldon.kubernetes_url, seldon.namespace, token_file=seldon.token_file, ca_file=seldon.ca_file)


def require_file(key: str, file: Path | None) -> None:
    """Raise ConfigError if the file that a setting names is not there."""
    if file is not None and not file.exists():
        raise ConfigError(
            f"seldon.{key} = {file} does not exist: run in the cluster with a service account, "
            "or set seldon.kubernetes_url to the address of `kubectl proxy`"
        )
