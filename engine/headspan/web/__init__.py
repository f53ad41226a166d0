"""The explorer: an HTTP server over open stores, and the page that it serves."""
