"""cocoa-tornado: the device gateway of a voice-device fleet.

Devices hold one WebSocket each; what Kafka says to a device reaches it, and no other. The layers, each of
which imports only what stands below it (a test reads the imports)::

    cli -> service -> web -> routing -> hub -> presence, relay -> rules and ports -> errors

``service`` is the composition root: the one place that names concrete adapters.
"""

__version__ = "0.1.0"
