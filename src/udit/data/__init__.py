"""Data: sources of images, their order and batches, and the codecs that convert them to what the network sees."""
