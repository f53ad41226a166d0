"""TEXTSPAN: the texts that span what a head writes."""
