"""The command line: a thin layer over ``cocoa_tornado``. Installed as ``cocoa_tornado_cli``."""
