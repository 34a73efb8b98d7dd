"""Texts as conditions: the hidden states of a frozen language model."""
