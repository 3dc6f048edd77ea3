"""The end of a worker without a parent, which nothing else would kill."""

from __future__ import annotations

import os
import select
import threading
import time


def exit_without_parent(fd: int, limit_s: float) -> None:
    """Exit with status 1 if the process still runs ``limit_s`` after its parent's end: its drain may wait for services
    that do not answer, its event loop may hang, and so may the end of the interpreter.

    :param fd: the worker's end of the channel; this keeps a duplicate
    """
    thread = threading.Thread(target=_wait, args=(os.dup(fd), limit_s), name="cocoa-parent", daemon=True)
    thread.start()


def _wait(fd: int, limit_s: float) -> None:
    poll = select.poll()
    poll.register(fd, 0)  # the end of the other side is always reported
    poll.poll()
    time.sleep(limit_s)
    os._exit(1)
