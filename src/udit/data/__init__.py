"""Pictures: where they come from, which comes when, in which batches, and what the network sees of them."""
