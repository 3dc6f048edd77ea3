"""The Tornado side: routes, handlers, and a device's connection once it is upgraded."""
