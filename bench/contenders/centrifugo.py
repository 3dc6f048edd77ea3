"""Centrifugo, the real-time messaging server, as its operators would run it for these devices.

It is started through this file, which writes its configuration into the environment and becomes it. It differs from the
other contenders in what it is asked:

- A device connects to its unidirectional WebSocket, with the token in the URL (``cf_connect``). It verifies the token
  after the upgrade, so that a device is in with the connect message, not with the 101.
- It passes a record's value on as it is (the Kafka consumer's publication data mode), in an envelope that names the
  channel. The publisher names the channel in a header of each record.
- A device has one channel: the personal one of the user whom the token names, which Centrifugo takes from the claim
  ``device_id``.
- It does not keep a device to one connection.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

ROOM_BYTES = 64 << 20


def configuration(port: int, bootstrap: str, topic: str, group: str, secret: str) -> dict[str, Any]:
    """By the names of Centrifugo's documentation. All else keeps its default."""
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
        },
        "uni_websocket": {"enabled": True, "handler_prefix": "/ws", "write_timeout": "10s"},
        "consumers": [
            {
                "name": "bench",
                "enabled": True,
                "type": "kafka",
                "kafka": {
                    "brokers": [bootstrap],
                    "topics": [topic],
                    "consumer_group": group,
                    "publication_data_mode": {"enabled": True, "channels_header": "centrifugo-channels"},
                },
            }
        ],
    }


def variables(settings: Mapping[str, Any], prefix: str = "CENTRIFUGO") -> Iterator[tuple[str, str]]:
    """The environment that says the same: https://centrifugal.dev/docs/server/configuration#os-environment-variables"""
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
