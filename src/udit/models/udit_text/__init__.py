"""U-DiT-text: a U of transformer blocks whose i-th block reads a language model's i-th layer, after Playground v3."""
