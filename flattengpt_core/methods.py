"""The compression methods by name. Imports no torch, so that the API can list and check them."""

UNPRUNED = "flattengpt-unpruned"
"""A row of comparisons alone: the flattened, not yet pruned model, which is no stock checkpoint."""

METHODS: dict[str, str] = {
    "flattengpt": "Merge neighbouring layers and regress the merged layer on the dense hidden states (default).",
    "flattengpt-paper": "FlattenGPT as published (arXiv 2602.08858): flatten, prune, ridge Nystrom compensation.",
    "shortgpt": "Remove the layers of least block influence (ShortGPT, arXiv 2403.03853).",
    "sleb": "Remove, one after another, the layer whose absence raises the loss least (SLEB, arXiv 2402.09025).",
    "laco": "Collapse upper layers into lower ones while the output stays similar (LaCo, arXiv 2402.11187).",
    "replaceme": "Replace the most redundant run of layers by a linear map (ReplaceMe, arXiv 2505.02819).",
    "come": "Merge neighbours by concatenating the units that matter most in each (CoMe, arXiv 2510.15304).",
    "fcm": "Keep the most influential layer of each community of similar ones (FCM, NeurIPS 2026).",
}
