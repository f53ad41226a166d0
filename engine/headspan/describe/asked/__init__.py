"""What is asked of language models: questions about the classes of images."""
