"""Send texts to a device, as a backend does; or one record of each kind of recipient and option.

    python produce.py DEVICE TEXT...
    python produce.py --each-kind USER GROUP DEVICE    (USER is JSON: 99 and "99" are different users)

Needs Python 3.11 and the package kafka-python 2.1 or later.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from datetime import UTC, datetime
from typing import Any

from kafka import KafkaProducer

BOOTSTRAP = os.environ.get("KAFKA_BOOTSTRAP", "127.0.0.1:9092")
TOPIC = os.environ.get("TOPIC", "transcription.results")

Record = tuple[str, dict[str, Any], list[tuple[str, bytes]]]
"""Key, fields of the value, headers."""


def to_device(device: str, texts: list[str]) -> list[Record]:
    # The key keeps a device's records in one partition, and therefore in order. kafka-python hashes it with murmur2,
    # like the Java client. All producers of a topic must use the same hash (examples/README.rst).
    # Headers named cocoa.* are options of the delivery, in JSON. A gateway ignores those that it does not know.
    return [(device, {"device_id": device, "text": text}, [("cocoa.ttl", b"3600")]) for text in texts]


def of_each_kind(user: int | str, group: str, device: str) -> list[Record]:
    others: dict[str, Any] = {"to": {"group": group}, "except": {"devices": [device]}}
    return [
        (str(user), {"to": {"user": user}, "text": "to a user"}, []),
        (group, {"to": {"group": group}, "text": "to a group"}, []),
        (group, {**others, "text": "to the rest of a group"}, []),
        ("all", {"to": {"all": True}, "text": "to all devices"}, []),
        (device, {"to": {"device": device}, "text": "to a device"}, []),
        (device, {"to": {"devices": [device]}, "text": "to a list of devices"}, []),
        (device, {"device_id": device, "ttl": 60, "text": "worth sending for a minute"}, []),
        (device, {"device_id": device, "ttl": 0, "text": "only for open connections"}, []),
        (device, {"device_id": device, "text": "urgent"}, [("cocoa.priority", b"high")]),
        (device, {"device_id": device, "priority": "low", "text": "first to be dropped"}, []),
        (device, {"device_id": device, "collapse_key": "volume", "text": "volume 7"}, []),
        # The id is new for each message, and the same when a message is sent again.
        (device, {"id": str(uuid.uuid4()), "device_id": device, "text": "with an id"}, []),
        # The same fields can be headers, for records whose value cannot be changed.
        (group, {"text": "to a group, by header"}, [("cocoa.to", json.dumps({"group": group}).encode())]),
    ]


def send(records: list[Record]) -> None:
    # Use one producer for the life of the process: it batches, and its idempotence lasts only as long as it does.
    producer = KafkaProducer(
        bootstrap_servers=BOOTSTRAP,
        acks="all",  # the record survives the loss of a broker
        enable_idempotence=True,  # a retry neither repeats a record nor overtakes the one before it
        compression_type="gzip",
    )
    sent = []
    for key, fields, headers in records:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        value = {"session_id": "example", **fields, "timestamp": now, "success": True}
        sent.append(producer.send(TOPIC, key=key.encode(), value=json.dumps(value).encode(), headers=headers))
    for future in sent:
        metadata = future.get(timeout=30)  # raises the error, if any; send() only queues the record
        print(f"sent: {metadata.partition} {metadata.offset}", flush=True)
    producer.close()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: produce.py DEVICE TEXT... | --each-kind USER GROUP DEVICE")
    if sys.argv[1] == "--each-kind":
        send(of_each_kind(json.loads(sys.argv[2]), *sys.argv[3:5]))
    else:
        send(to_device(sys.argv[1], sys.argv[2:]))
