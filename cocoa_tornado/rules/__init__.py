"""The decisions, without I/O: plain synchronous code that takes ``now`` as an argument and returns values.

Nothing in this package imports an event loop, a socket, a thread or a server's client library.
"""
