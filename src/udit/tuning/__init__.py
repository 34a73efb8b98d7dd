"""Which ways of sampling from a run are good, and which are quick."""
