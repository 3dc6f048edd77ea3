"""Speech to text: the port, the pool of worker processes, and the engines that run in them."""
