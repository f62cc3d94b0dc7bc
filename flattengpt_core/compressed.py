"""What a compression method did to the layers, as plain values for the record."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flattengpt_core.grouping import Group


@dataclass(frozen=True)
class MergedGroup:
    """What became of a group: kept key/value groups and channels (indices into the flattened layer), errors.

    `attention_error` and `mlp_error` are ‖target − output‖² / ‖target‖² over the calibration tokens.
    """

    members: Group
    kv_groups: list[int]
    channels: list[int]
    attention_ridge: float
    mlp_ridge: float
    attention_error: float
    mlp_error: float

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "MergedGroup":
        """The group whose fields JSON has kept."""
        return cls(**{**entry, "members": tuple(entry["members"])})


@dataclass(frozen=True)
class Compressed:
    """Which source layers stand behind each new layer, and how each merged group came out."""

    groups: list[Group]
    merged: list[MergedGroup]

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Compressed":
        """The outcome whose fields JSON has kept."""
        merged = [MergedGroup.from_json(each) for each in entry["merged"]]
        return cls([tuple(group) for group in entry["groups"]], merged)
