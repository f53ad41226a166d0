"""Sparse features of image and text embeddings, and how much each belongs to images, texts, or both."""
