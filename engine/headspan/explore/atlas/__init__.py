"""A map of all images for embedding-atlas."""
