"""Who may act for a device: the port, and local:// behind it."""
