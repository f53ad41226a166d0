"""Any open_clip Vision Transformer as one uniform tower, and its text tower."""

from headspan.model.without_compiler import import_open_clip

# Before any module of this folder imports open_clip itself.
import_open_clip()
