"""Create hone's topics where they are missing, on the broker that HONE_KAFKA_BOOTSTRAP_SERVERS names.

Partitions bound how many ingests share the work; more can be added later, keys then move.
"""

import sys

from hone.errors import HoneError
from hone.local.broker import create_topics, external_broker
from hone.records import DEAD_LETTER_TOPIC, FEEDBACK_TOPIC, RESPONSES_TOPIC, RETRAIN_TOPIC
from hone.settings import load_settings

PARTITIONS = {RESPONSES_TOPIC: 6, FEEDBACK_TOPIC: 6, RETRAIN_TOPIC: 1, DEAD_LETTER_TOPIC: 1}


def main() -> int:
    """Create them and say which; exit code 1 where the broker is away."""
    try:
        broker = external_broker(load_settings().kafka_bootstrap_servers or "")
        print("created:", ", ".join(create_topics(broker, PARTITIONS)) or "nothing, all are there")
    except HoneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
