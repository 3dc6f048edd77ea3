"""Send texts to a device, as a backend does.

    python produce.py DEVICE TEXT...

Needs Python 3.11 and the package kafka-python 2.1 or later.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime

from kafka import KafkaProducer

BOOTSTRAP = os.environ.get("KAFKA_BOOTSTRAP", "127.0.0.1:9092")
TOPIC = os.environ.get("TOPIC", "transcription.results")


def main(device: str, texts: list[str]) -> None:
    # Use one producer for the life of the process: it batches, and its idempotence lasts only as long as it does.
    producer = KafkaProducer(
        bootstrap_servers=BOOTSTRAP,
        acks="all",  # the record survives the loss of a broker
        enable_idempotence=True,  # a retry neither repeats a record nor overtakes the one before it
        compression_type="gzip",
    )
    sent = []
    for text in texts:
        value = {
            "session_id": "example",
            "device_id": device,  # the recipient
            "text": text,
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "success": True,
        }
        # The key keeps a device's records in one partition, and therefore in order. kafka-python hashes it with
        # murmur2, like the Java client. All producers of a topic must use the same hash (examples/README.rst).
        # Headers named cocoa.* are options of the delivery, in JSON. A gateway ignores those that it does not know.
        headers = [("cocoa.ttl", b"3600")]
        sent.append(producer.send(TOPIC, key=device.encode(), value=json.dumps(value).encode(), headers=headers))
    for future in sent:
        metadata = future.get(timeout=30)  # raises the error, if any; send() only queues the record
        print(f"sent: {metadata.partition} {metadata.offset}", flush=True)
    producer.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: produce.py DEVICE TEXT...")
    main(sys.argv[1], sys.argv[2:])
