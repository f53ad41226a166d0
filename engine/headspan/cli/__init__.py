"""The command line, and all printing."""
