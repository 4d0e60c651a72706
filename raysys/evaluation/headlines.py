"""The metrics that are shown first, wherever a few are; a service reads them without Torch."""

HEADLINES = (
    "recall@20",
    "recall@50",
    "recall@20^0",
    "recall@20^0.3",
    "recall@20^0.5",
    "ndcg@100",
    "hit@10",
    "coverage@20",
    "gini@20",
    "novelty@20",
    "rmse",
    "mae",
    "nll",
    "ece",
)
