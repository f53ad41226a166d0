"""One HTML file that shows what a store holds."""
