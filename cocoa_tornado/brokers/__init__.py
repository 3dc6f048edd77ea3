"""The broker port (``port.py``) and its adapters, each named after its technology."""
