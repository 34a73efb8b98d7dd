"""Small trained models that come with the library: ``demo:digits``, ``demo:fashion-mnist``."""
