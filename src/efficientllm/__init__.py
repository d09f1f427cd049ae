"""EfficientLLM: what an efficiency technique for language models really costs and buys."""

__version__ = "0.1.0"
