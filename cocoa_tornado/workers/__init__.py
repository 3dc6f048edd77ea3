"""Several servers on one port: ``serve --workers N``."""
