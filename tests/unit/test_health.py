import httpx
import pytest

from hone.errors import ConfigError
from hone.health import Pulse, serve_health


def test_it_serves_metrics_and_the_state_of_the_loop_until_the_loop_hangs() -> None:
    now = 100.0
    pulse = Pulse(max_age_s=5, clock=lambda: now)
    server = serve_health(0, pulse)
    url = f"http://127.0.0.1:{server.server_port}"
    assert httpx.get(f"{url}/healthz").text == "ok\n"
    assert "python_info" in httpx.get(f"{url}/metrics").text
    assert httpx.get(f"{url}/other").status_code == 404
    now = 106.0
    answer = httpx.get(f"{url}/healthz")
    assert (answer.status_code, answer.text) == (503, "the loop hangs\n")
    pulse.beat()
    assert httpx.get(f"{url}/healthz").status_code == 200
    server.shutdown()
    server.server_close()


def test_a_port_in_use_is_named() -> None:
    server = serve_health(0, Pulse())
    with pytest.raises(ConfigError, match=rf"{server.server_port} .*in use.*--metrics-port"):
        serve_health(server.server_port, Pulse())
    server.shutdown()
    server.server_close()
