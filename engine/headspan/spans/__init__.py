"""TEXTSPAN: describe every head by the texts that explain most of its variance."""

from headspan.spans.algorithm import TextSpan, textspan_dense
from headspan.spans.nulls import Chance, HeadsAbove, SpanNull
from headspan.spans.over_store import textspan
from headspan.spans.result import HeadSpans, HeadTable
from headspan.spans.saved import read_spans

__all__ = [
    "Chance",
    "HeadSpans",
    "HeadTable",
    "HeadsAbove",
    "SpanNull",
    "TextSpan",
    "read_spans",
    "textspan",
    "textspan_dense",
]
