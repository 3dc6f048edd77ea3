"""Helpers shared by tests and benchmarks: real servers on loopback, certificates, a raw device. Not in the wheel."""
