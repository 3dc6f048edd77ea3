"""Print the text messages that devices send to the gateway.

    python consume.py [GROUP]

Needs Python 3.11 and the package kafka-python 2.1 or later. The key of a record is the device id, so a device's
messages are in one partition, in order. The value is {"device_id":...,"user_id":...,"text":...,"timestamp":...}.
"""

from __future__ import annotations

import json
import os
import sys

from kafka import KafkaConsumer

BOOTSTRAP = os.environ.get("KAFKA_BOOTSTRAP", "127.0.0.1:9092")
TOPIC = os.environ.get("TOPIC", "device.messages")


def main(group: str) -> None:
    consumer = KafkaConsumer(
        TOPIC,
        bootstrap_servers=BOOTSTRAP,
        group_id=group,  # the processes of one group share the partitions
        auto_offset_reset="earliest",  # a new group begins at the oldest record, not at the next one
        enable_auto_commit=False,
    )
    try:
        while True:
            for records in consumer.poll(timeout_ms=1000).values():
                for record in records:
                    said = json.loads(record.value)
                    print(f"{said['device_id']}: {said['text']}", flush=True)
            # Commit after the work: a crash repeats the last records and loses none. If your work must not be done
            # twice, make it idempotent by (partition, offset).
            consumer.commit()
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "example")
