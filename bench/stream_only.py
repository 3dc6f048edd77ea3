"""``cocoa``, where Tornado lets itself be used in its public ways only: ``python -m bench.stream_only serve ...``.

All messages go through the stream's own buffer then, and a write shows no progress before it is done. For the soak: it
is what the gateway falls back to with a Tornado that it does not know.
"""

from __future__ import annotations

from unittest import mock

from cli.main import main

if __name__ == "__main__":
    with (
        mock.patch("cocoa_tornado.service.direct_write_works", return_value=False),
        mock.patch("cocoa_tornado.service.write_progress_is_visible", return_value=False),
        mock.patch("cocoa_tornado.service.writes_without_room_work", return_value=False),
        mock.patch("cocoa_tornado.connection.connection.write_mark", return_value=(0, 0)),
        mock.patch("cocoa_tornado.web.listener.write_mark", return_value=(0, 0)),
    ):
        main()
