"""What a 202 is worth: people who give feedback while the broker and the gateway are killed, again and again."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from confluent_kafka import Consumer, TopicPartition

from benchmarks.gateway_world import World, token
from benchmarks.result import say
from hone.ids import uuid7
from hone.records import FEEDBACK_TOPIC

PEOPLE = 48
KILLS = (("kafka", 0.15), ("gateway", 0.3), ("kafka", 0.45), ("gateway", 0.6), ("kafka", 0.75), ("gateway", 0.9))
"""Who is killed with SIGKILL once this share of the events was acknowledged."""


@dataclass
class Crowd:
    """Events that were acknowledged, and how often one had to be sent again."""

    url: str
    wanted: int
    begun: int = 0
    acknowledged: set[str] = field(default_factory=set)
    again: int = 0

    async def person(self, client: aiohttp.ClientSession) -> None:
        """Give feedback on one answer until enough was given; what is not acknowledged is sent again as it is."""
        answer = token()
        while self.begun < self.wanted:
            self.begun += 1
            event = str(uuid7())
            body = json.dumps({"response_id": answer, "kind": "thumbs", "value": 1, "event_id": event}).encode()
            while not await self.sent(client, body):
                self.again += 1
                await asyncio.sleep(0.05)
            self.acknowledged.add(event)

    async def sent(self, client: aiohttp.ClientSession, body: bytes) -> bool:
        try:
            async with client.post(f"{self.url}/v1/feedback", data=body) as answer:
                return answer.status == 202
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


async def kill(world: World, crowd: Crowd) -> None:
    """Kill and restart, in turn, as the events go by."""
    for name, share in KILLS:
        while len(crowd.acknowledged) < share * crowd.wanted:
            await asyncio.sleep(0.02)
        say(f"loss: {len(crowd.acknowledged)} acknowledged, {name} is killed")
        await asyncio.to_thread(world.supervisor.kill, name)
        await asyncio.to_thread(world.supervisor.restart, name)


async def give(world: World, crowd: Crowd) -> None:
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout, headers={"content-type": "application/json"}) as client:
        people = [asyncio.create_task(crowd.person(client)) for _ in range(PEOPLE)]
        await kill(world, crowd)
        await asyncio.gather(*people)


def stored(bootstrap: str) -> set[str]:
    """Return the ids of all events in the topic."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "look", "enable.auto.commit": False})
    partition = TopicPartition(FEEDBACK_TOPIC, 0, 0)
    _, end = consumer.get_watermark_offsets(partition, timeout=30)
    consumer.assign([partition])
    found: set[str] = set()
    position = 0
    while position < end:
        for message in consumer.consume(5000, timeout=10):
            if message.error() is None:
                found.add(json.loads(message.value())["event_id"])
                position = message.offset() + 1
    consumer.close()
    return found


def lost(world: World, number: int) -> dict[str, Any]:
    """Return how many of `number` acknowledged events are not in the topic after the kills."""
    crowd = Crowd(world.url(world.gateway()), number)
    asyncio.run(give(world, crowd))
    there = stored(world.kafka.bootstrap_servers)
    missing = len(crowd.acknowledged - there)
    return {"acknowledged": len(crowd.acknowledged), "lost": missing, "sent_again": crowd.again, "kills": len(KILLS)}
