"""Optimisers, which weights each one changes, and schedules of the learning rate."""
