"""Questions about heads rather than images: words that explain them, texts they carry, what their weights write."""
