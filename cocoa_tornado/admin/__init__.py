"""The admin API: operators see and control devices and messages over all servers."""
