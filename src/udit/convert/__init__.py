"""Weights of other programs: their files (``files``), the states in them (``states``), model folders (``system``)."""
