"""``udit studio``: a local web page to sample from models and to watch runs; gradio is imported by ``page`` and ``serve``."""
