"""A device's connection from the upgrade to its end: the protocol without I/O, and its shell on the IOLoop."""
