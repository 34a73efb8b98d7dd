"""Wan 2.1 (Wan team 2025): joint attention over space and time, text by cross-attention."""
