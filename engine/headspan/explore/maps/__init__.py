"""Map where heads see a text in an image."""
