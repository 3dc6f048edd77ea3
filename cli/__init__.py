"""The command line: thin shells around ``cocoa_tornado``. Installed as ``cocoa_tornado_cli``."""
