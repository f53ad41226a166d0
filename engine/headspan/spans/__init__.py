"""TEXTSPAN: describe every head by the texts that explain most of its variance."""

from headspan.spans.algorithm import TextSpan, textspan_dense
from headspan.spans.over_store import textspan
from headspan.spans.result import HeadSpans, read_spans

__all__ = ["HeadSpans", "TextSpan", "read_spans", "textspan", "textspan_dense"]
