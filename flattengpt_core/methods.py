"""The compression methods by name. Imports no torch, so that the API can list and check them."""

UNPRUNED = "flattengpt-unpruned"
"""A row of comparisons alone: the flattened, not yet pruned model, which is no stock checkpoint."""

METHODS: dict[str, str] = {
    "flattengpt": "Merge neighbouring layers and regress the merged layer on the dense hidden states (default).",
    "flattengpt-paper": "FlattenGPT as published (arXiv 2602.08858): flatten, prune, ridge Nystrom compensation.",
    "shortgpt": "Remove the layers of least block influence (ShortGPT, arXiv 2403.03853).",
}
