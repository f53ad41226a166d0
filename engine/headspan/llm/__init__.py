"""Language models behind an OpenAI-compatible endpoint: client, cache and budget."""
