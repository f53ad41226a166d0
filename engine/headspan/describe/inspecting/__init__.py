"""Judge what descriptions teach about their classes: nothing, something visual, or something else."""
