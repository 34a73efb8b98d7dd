"""How good generated images are: a judge trained on the data set, distances and shares, and the report of them."""

from typing import Literal

FeaturesName = Literal["judge", "inception", "clip", "dinov2"]
"""Whose features a score compares: a classifier of the data set's own classes, or a published network."""
