"""Messages between the servers of a deployment: the port, and memory:// behind it."""
