"""Send texts to a device, as a backend does.   python produce.py DEVICE TEXT...

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
    # One producer for the life of the process: it batches, and its idempotence lasts as long as it does.
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
            "device_id": device,  # decides who gets it
            "text": text,
            "timestamp": datetime.now(UTC).isoformat(),
            "success": True,
        }
        # The key keeps a device's records in one partition, and so in order. kafka-python hashes it with murmur2, like
        # the Java client; producers of one topic must agree on that (examples/README.rst).
        # Headers named cocoa.* may say more about delivery, in JSON; a gateway ignores those that it does not know.
        headers = [("cocoa.ttl", b"3600")]
        sent.append(producer.send(TOPIC, key=device.encode(), value=json.dumps(value).encode(), headers=headers))
    for future in sent:
        metadata = future.get(timeout=30)  # raises what went wrong; send() alone only puts the record in a queue
        print(f"sent: {metadata.partition} {metadata.offset}", flush=True)
    producer.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: produce.py DEVICE TEXT...")
    main(sys.argv[1], sys.argv[2:])
