"""Train a language model by reinforcement learning to write the descriptions that a vision-language model prefers."""
