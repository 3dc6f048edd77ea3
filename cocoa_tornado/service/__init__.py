"""The composition root: makes one gateway out of settings, and carries it through its life.

``gateway.py`` opens and closes it; the other modules make what it consists of.
"""
