"""Backbones trained and scored under one budget, for ``udit compare``."""
