"""Models on the Hugging Face hub: ``push`` and ``pull``, and the card beside a model."""
