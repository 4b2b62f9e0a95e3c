"""A real Kubernetes API server with etcd behind it, as `deploy/kube-apiserver.sh` builds them: RBAC, TLS, loopback."""

import ssl
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx
import yaml

from hone.local.ports import free_ports
from hone.local.processes import Program, Supervisor

HOME = Path(__file__).parents[2] / "var" / "kube"
BIN = HOME / "bin"
NAMESPACE = "hone"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


@dataclass(frozen=True)
class KubeServer:
    """A server that runs; `admin_token` may do everything."""

    url: str
    ca_file: Path
    admin_token: str
    supervisor: Supervisor

    def client(self, token: str | None = None) -> httpx.Client:
        """A client that trusts the server's certificate, with the administrator's rights unless a token is given."""
        headers = {"Authorization": f"Bearer {token or self.admin_token}"}
        return httpx.Client(base_url=self.url, headers=headers, verify=self.trust(), trust_env=False, timeout=20)

    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.ca_file))

    def crash(self) -> None:
        """Kill it and start it again; what it stored is there afterwards."""
        self.supervisor.kill("kube-apiserver")
        self.supervisor.restart("kube-apiserver")
        self.await_kinds()

    def pid(self) -> int | None:
        """Return its process; None while it is being started again."""
        return next((one.process.pid for one in self.supervisor.running if one.name == "kube-apiserver"), None)

    def await_kinds(self) -> None:
        """Wait until every kind that is defined is served too: at first the server knows it and has no store for it."""
        deadline = time.monotonic() + 30
        with self.client() as admin:
            definitions = succeeded(admin.get(DEFINITIONS))["items"]
            while not all(admin.get(path_of_all(one)).is_success for one in definitions):
                assert time.monotonic() < deadline, "the definitions are not served after 30 s"
                time.sleep(0.05)

    def is_ready(self) -> bool:
        if not self.ca_file.exists():
            return False
        try:
            with self.client() as client:
                return client.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def token_of(self, account: str) -> str:
        """A token of a service account, as the kubelet mounts it (TokenRequest)."""
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        with self.client() as admin:
            answer = admin.post(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{account}/token", json=request)
        return str(succeeded(answer)["status"]["token"])

    def kubeconfig(self, directory: Path) -> Path:
        """A file with which kubectl is the administrator."""
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "it",
            "clusters": [{"name": "it", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.admin_token}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "admin"}}],
        }
        file = directory / "kubeconfig"
        file.write_text(yaml.safe_dump(document))
        return file


def succeeded(answer: httpx.Response) -> dict[str, Any]:
    """The body of an answer that must be a success."""
    assert answer.is_success, f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text[:2000]}"
    return dict(answer.json())


@contextmanager
def running_server(directory: Path) -> Iterator[KubeServer]:
    """Run etcd and the API server for the length of the block; nothing they store outlives it."""
    clients, peers, port = free_ports(3)
    certificate = directory / "certificates" / "apiserver.crt"
    with Supervisor(directory / "kubernetes.json", stop_timeout_s=2.0) as supervisor:
        server = KubeServer(f"https://127.0.0.1:{port}", certificate, token_hex(16), supervisor)
        supervisor.start(etcd(directory, clients, peers))
        supervisor.start(api_server(directory, server, port, clients))
        yield server


def etcd(directory: Path, clients: int, peers: int) -> Program:
    here = f"http://127.0.0.1:{clients}"
    options = {
        "data-dir": str(directory / "etcd"),
        "listen-client-urls": here,
        "advertise-client-urls": here,
        "listen-peer-urls": f"http://127.0.0.1:{peers}",
        "unsafe-no-fsync": "true",
        "log-level": "warn",
    }
    argv = (str(BIN / "etcd"), *(f"--{name}={value}" for name, value in options.items()))
    return Program(
        name="etcd", argv=argv, log_path=directory / "etcd.log", health_url=f"{here}/health", foundation=True
    )


def api_server(directory: Path, server: KubeServer, port: int, clients: int) -> Program:
    tokens, key = directory / "tokens.csv", directory / "service-accounts.key"
    tokens.write_text(f"{server.admin_token},admin,admin,system:masters\n")
    subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True, capture_output=True)
    options = {
        "etcd-servers": f"http://127.0.0.1:{clients}",
        "bind-address": "127.0.0.1",
        "secure-port": str(port),
        "cert-dir": str(server.ca_file.parent),
        "token-auth-file": str(tokens),
        "authorization-mode": "RBAC",
        "service-cluster-ip-range": "10.0.0.0/24",
        "service-account-issuer": "https://kubernetes.default.svc",
        "service-account-key-file": str(key),
        "service-account-signing-key-file": str(key),
        "endpoint-reconciler-type": "none",
    }
    argv = (str(BIN / "kube-apiserver"), *(f"--{name}={value}" for name, value in options.items()))
    log = directory / "kube-apiserver.log"
    return Program(name="kube-apiserver", argv=argv, log_path=log, ready=server.is_ready, deadline_s=120.0)


def install(server: KubeServer, manifests: Iterable[dict[str, Any]]) -> None:
    """Create the objects in this order; afterwards the kinds that they define are served."""
    with server.client() as admin:
        for manifest in manifests:
            succeeded(admin.post(collection_of(manifest), json=manifest, params={"fieldValidation": "Strict"}))
        # What the controllers of a whole cluster would make: every namespace has it, and every pod needs it.
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}
        succeeded(admin.post(f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts", json=account))
    server.await_kinds()


def path_of_all(definition: dict[str, Any]) -> str:
    """The path of the objects of a custom kind, in all namespaces."""
    spec = definition["spec"]
    return f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}"


def collection_of(manifest: dict[str, Any]) -> str:
    """The path under which an object of this kind is created."""
    version, kind = manifest["apiVersion"], manifest["kind"]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    plural = f"{kind.lower()}s"
    space = manifest["metadata"].get("namespace")
    return f"{root}/{plural}" if space is None else f"{root}/namespaces/{space}/{plural}"
