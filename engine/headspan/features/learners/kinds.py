"""The names of the learners, for those who choose one and need no torch for it."""

from __future__ import annotations

TOPK = "topk"
BATCH_TOPK = "batch_topk"

# In the order in which help pages and tables list them.
LEARNERS = (TOPK, BATCH_TOPK)
