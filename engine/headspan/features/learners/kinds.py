"""The names of the learners, for those who choose one and need no torch for it."""

from __future__ import annotations

TOPK = "topk"
BATCH_TOPK = "batch_topk"
MATRYOSHKA = "matryoshka"
MATCHING_PURSUIT = "matching_pursuit"
GROUP_SPARSE = "group_sparse"
ALIGNED = "aligned"
NON_NEGATIVE = "non_negative"

# In the order in which help pages and tables list them.
LEARNERS = (TOPK, BATCH_TOPK, MATRYOSHKA, MATCHING_PURSUIT, GROUP_SPARSE, ALIGNED, NON_NEGATIVE)
