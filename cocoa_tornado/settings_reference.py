"""The former name of :mod:`cocoa_tornado.settings.reference`, for scripts that run it."""

from __future__ import annotations

from .settings.reference import main

if __name__ == "__main__":
    main()
