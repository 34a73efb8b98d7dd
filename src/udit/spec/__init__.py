"""Specs: frozen, strict descriptions of parts, with errors in one line; free of torch and of I/O."""
