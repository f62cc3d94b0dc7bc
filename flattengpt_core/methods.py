"""The compression methods by name. Imports no torch, so that the API can list and check them."""

METHODS: dict[str, str] = {
    "flattengpt": "Merge neighbouring layers and regress the merged layer on the dense hidden states (default).",
    "flattengpt-paper": "FlattenGPT as published (arXiv 2602.08858): flatten, prune, ridge Nystrom compensation.",
    "shortgpt": "Remove the layers of least block influence (ShortGPT, arXiv 2403.03853).",
    "sleb": "Remove, one after another, the layer whose absence raises the loss least (SLEB, arXiv 2402.09025).",
    "laco": "Collapse upper layers into lower ones while the output stays similar (LaCo, arXiv 2402.11187).",
}
