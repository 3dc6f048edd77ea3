"""The admin API: what operators see and do, over all servers."""
