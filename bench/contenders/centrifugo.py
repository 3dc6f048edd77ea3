"""Runs Centrifugo, the real-time messaging server, configured for the benchmark.

This script sets Centrifugo's environment variables and then executes it. Devices and publishers behave differently than
with the other contenders:

- A device connects to the unidirectional WebSocket, with the token in the URL (``cf_connect``). Centrifugo verifies the
  token after the upgrade, so a device has connected when it receives the connect message, not with the 101.
- The Kafka consumer passes a record's value on as it is (publication data mode), in an envelope that names the channel.
  The publisher names the channel in a header of each record.
- A fresh consumer group reads its topic from the beginning, so ``/ready`` need not wait for the partitions.

Each device has one channel: the personal channel of its user, whom Centrifugo takes from the claim ``device_id``. The
token is therefore the same as for the other contenders. The ways to name the channel in the token (``channels`` or
``subs``, with the device in ``sub``) were measured in turns and cost the same or more.

The settings use every cheaper option in the documentation: no second kind of ping, small buffers for idle connections,
no presence refresh, and room for a burst. The exception is ``join_push_messages``, which joins several messages in one
frame, because the contract requires one frame per record, as the other contenders send. Centrifugo does less in one
respect: it does not limit a device to one connection, because ``user_connection_limit`` refuses after the upgrade.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

ROOM_BYTES = 64 << 20
ROOM_RECORDS = 100_000


def configuration(port: int, bootstrap: str, topic: str, group: str, secret: str) -> dict[str, Any]:
    """The settings, named as in Centrifugo's documentation. All others keep their defaults."""
    return {
        "http_server": {"address": "127.0.0.1", "port": port},
        "log": {"level": "error"},
        "health": {"enabled": True, "handler_prefix": "/ready"},
        "usage_stats": {"disabled": True},
        "websocket": {"disabled": True},
        "http_api": {"disabled": True},
        "client": {
            "token": {"hmac_secret_key": secret, "user_id_claim": "device_id"},
            "subscribe_to_user_personal_channel": {"enabled": True},
            "queue_max_size": ROOM_BYTES,
            # No ``{}`` as a second ping beside WebSocket's own. That one is then sent every 25 s, and answered within
            # 10 s: there is no setting for either. A pong timeout must be less than the interval, even if both are off.
            "ping_interval": "-1ns",
            "pong_timeout": "-2ns",
            # A timer for each client, every 27 s by default, also where no channel has presence.
            "presence_update_interval": "24h",
        },
        "uni_websocket": {
            "enabled": True,
            "handler_prefix": "/ws",
            "write_timeout": "10s",
            # By default a connection keeps the two buffers of 4 KiB that it had as an HTTP request.
            "read_buffer_size": 512,
            "use_write_buffer_pool": True,
        },
        "consumers": [
            {
                "name": "bench",
                "enabled": True,
                "type": "kafka",
                "kafka": {
                    "brokers": [bootstrap],
                    "topics": [topic],
                    "consumer_group": group,
                    "partition_queue_max_size": ROOM_RECORDS,
                    "publication_data_mode": {"enabled": True, "channels_header": "centrifugo-channels"},
                },
            }
        ],
    }


def variables(settings: Mapping[str, Any], prefix: str = "CENTRIFUGO") -> Iterator[tuple[str, str]]:
    """The equivalent environment variables:
    https://centrifugal.dev/docs/server/configuration#os-environment-variables"""
    for name, value in settings.items():
        variable = f"{prefix}_{name.upper()}"
        if isinstance(value, Mapping):
            yield from variables(value, variable)
        else:
            yield variable, value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--port", type=int, required=True)
    for name in ("--bootstrap", "--topic", "--group"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    secret = os.environ["COCOA_JWT_SECRET"]
    settings = configuration(options.port, options.bootstrap, options.topic, options.group, secret)
    print(f"listening on {options.port}", flush=True)
    os.execve(options.binary, [options.binary], os.environ | dict(variables(settings)))


if __name__ == "__main__":
    main()
