"""The Run: recipes, overrides and the steps from plain values to a complete run; free of torch."""
