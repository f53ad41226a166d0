"""What the explorer's server keeps between requests: open stores, the model's process, dropped-in images."""
