"""Redis, as mailbox, presence and relay use it: URLs, connections, scripts, and errors in one line."""
