"""cocoa-tornado: the device gateway of a voice-device fleet.

Devices hold one WebSocket each; a record in Kafka is delivered to the devices that it addresses, and to no other. The
layers, each of which imports only those to its right (a test reads the imports)::

    cli -> service -> web -> routing -> hub -> presence, relay -> rules and ports -> errors

``service`` is the composition root: the one place that names concrete adapters.
"""

__version__ = "0.1.0"
