"""What the tests and the benchmarks share: real servers on loopback, certificates, a raw device. Not in the wheel."""
