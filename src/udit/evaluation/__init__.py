"""How good generated images are: a judge trained on the data set, distances and shares, and the report of them."""

from typing import Literal

FeaturesName = Literal["judge", "efficientnet-lite0", "inception", "clip", "dinov2", "timm"]
"""Whose features a score compares: a classifier of the data set's own classes, or a published network. Commands take
``NAME:SOURCE`` as well, with the file, the folder or the hub id of its weights."""
