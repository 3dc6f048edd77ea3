"""Decisions, apart from I/O: plain synchronous code that takes ``now`` as an argument and returns values.

Nothing in this package imports a loop, a socket, a thread or a client library of a server.
"""
