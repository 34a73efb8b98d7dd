"""``udit serve``: an HTTP API for sampling, whose network runs in a process of its own."""
