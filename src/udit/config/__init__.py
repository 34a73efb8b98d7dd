"""Every frozen config of the library, free of torch, so that configuration errors answer at once."""
