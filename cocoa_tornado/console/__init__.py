"""The web console: files for a browser, and the routes that serve them. All data comes from the admin API."""
