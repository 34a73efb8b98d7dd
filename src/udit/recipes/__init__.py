"""Recipes shipped with the library, as YAML."""
