"""Concepts of heads: labels, Concept Consistency Scores, judges, votes, agreement, comparison."""

from headspan.concepts.agreement import Agreement, Measure, PairOfRaters, RaterAgreement, rater_agreement
from headspan.concepts.ccs import concept_consistency, read_scores
from headspan.concepts.comparison import ComparedStore, Comparison, Method, compare
from headspan.concepts.consistency import ConceptConsistency, Votes
from headspan.concepts.examples import Example, read_examples
from headspan.concepts.human_votes import read_vote_sheet, write_vote_sheet
from headspan.concepts.labelled_heads import heads_of
from headspan.concepts.labels import Labels, label_heads, read_labels
from headspan.concepts.llm_judges import judge_heads, missing_votes
from headspan.concepts.llm_labels import label_by_model
from headspan.concepts.merging import merge_labels
from headspan.concepts.nulls import ConsistencyChance, consistency_chance
from headspan.concepts.pool_writer.request import PoolRequest
from headspan.concepts.pool_writer.write import WrittenPool, write_pool
from headspan.concepts.votes import JudgesVote, VotesOfRun, VotesOnHead, VotesOnText, read_votes

__all__ = [
    "Agreement",
    "ComparedStore",
    "Comparison",
    "ConceptConsistency",
    "ConsistencyChance",
    "Example",
    "JudgesVote",
    "Labels",
    "Measure",
    "Method",
    "PairOfRaters",
    "PoolRequest",
    "RaterAgreement",
    "Votes",
    "VotesOfRun",
    "VotesOnHead",
    "VotesOnText",
    "WrittenPool",
    "compare",
    "concept_consistency",
    "consistency_chance",
    "heads_of",
    "judge_heads",
    "label_by_model",
    "label_heads",
    "merge_labels",
    "missing_votes",
    "rater_agreement",
    "read_examples",
    "read_labels",
    "read_scores",
    "read_vote_sheet",
    "read_votes",
    "write_pool",
    "write_vote_sheet",
]
