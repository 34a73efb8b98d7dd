"""Which sampling settings of a run give good images, and which of them are fast."""
