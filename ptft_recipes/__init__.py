"""Pre-train, then fine-tune: the library behind the recipes."""

__version__ = "0.1.0"
