"""What features are learned from: the vectors of images and of their captions, streamed from stores in blocks."""
