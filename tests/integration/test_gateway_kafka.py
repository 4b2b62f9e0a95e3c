"""What the gateway's 202 is worth on a real broker that is killed while people give feedback."""

import threading
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest

from hone.local.broker import create_topics
from hone.local.kafka import prepare_kafka
from hone.local.processes import Supervisor
from hone.records import FEEDBACK_TOPIC, RESPONSES_TOPIC, Feedback, Response
from tests.support.gateway import ForeignServer, Served, gateway, records
from tests.support.web import serving

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PEOPLE = 8
MIN_ACKNOWLEDGED = 200


class Crowd:
    """People who rate one answer again and again, each time with a new event; what is refused is sent again."""

    def __init__(self, served: Served, token: str) -> None:
        self.served, self.token = served, token
        self.acknowledged: set[UUID] = set()
        self.refusals = 0
        self.stop = threading.Event()
        self.threads = [threading.Thread(target=self.rate) for _ in range(PEOPLE)]

    def rate(self) -> None:
        with httpx.Client(base_url=self.served.url, timeout=30, trust_env=False) as client:
            while not self.stop.is_set():
                event_id = uuid4()
                body = {"response_id": self.token, "kind": "thumbs", "value": 1, "event_id": str(event_id)}
                while client.post("/v1/feedback", json=body).status_code == 503:
                    self.refusals += 1
                self.acknowledged.add(event_id)


def test_no_acknowledged_feedback_is_lost_when_the_broker_is_killed_in_the_middle(
    tmp_path: Path, kafka_libs: Path
) -> None:
    server = prepare_kafka(tmp_path / "kafka", kafka_libs)
    with (
        Supervisor(tmp_path / "stack.json") as supervisor,
        serving(ForeignServer(["hi"])) as upstream,
    ):
        supervisor.start(server.program(tmp_path / "kafka.log"))
        create_topics(server.broker(), {FEEDBACK_TOPIC: 1, RESPONSES_TOPIC: 1})
        with gateway(tmp_path, upstream, bootstrap=server.bootstrap_servers, produce_timeout_s=1.0) as served:
            crowd = Crowd(served, served.answer_id())
            for thread in crowd.threads:
                thread.start()
            wait_for(crowd, MIN_ACKNOWLEDGED)
            supervisor.kill("kafka")
            served.answer_id()
            supervisor.restart("kafka")
            wait_for(crowd, len(crowd.acknowledged) + MIN_ACKNOWLEDGED)
            crowd.stop.set()
            for thread in crowd.threads:
                thread.join()
            # The answer given while the broker was away waits on disk until the running gateway sends it again.
            answers = records(server.bootstrap_servers, RESPONSES_TOPIC, Response, at_least=2, timeout_s=40)
        stored = records(server.bootstrap_servers, FEEDBACK_TOPIC, Feedback, at_least=len(crowd.acknowledged))
        assert crowd.acknowledged <= {event.event_id for event in stored}
        assert crowd.refusals > 0, "the broker must have been away for some"
        assert len(answers) >= 2


def wait_for(crowd: Crowd, number: int) -> None:
    waiting = threading.Event()
    for _ in range(600):
        if len(crowd.acknowledged) >= number:
            return
        waiting.wait(0.1)
    pytest.fail(f"{len(crowd.acknowledged)} events acknowledged in a minute, waited for {number}")
