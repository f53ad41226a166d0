"""Concepts of heads: labels, Concept Consistency Scores, judges and votes."""
