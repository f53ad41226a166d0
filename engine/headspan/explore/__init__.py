"""Questions to a store that change nothing: nearest images, maps of texts."""
