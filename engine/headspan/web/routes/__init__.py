"""The addresses of the explorer's HTTP API: a module for each screen, a thin layer over the query functions."""
