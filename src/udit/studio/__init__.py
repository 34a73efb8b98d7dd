"""``udit studio``: a local page to draw from models and to watch runs; ``page`` and its tabs alone load gradio."""
