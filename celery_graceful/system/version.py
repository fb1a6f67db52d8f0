"""The version, for all that says it."""

__all__ = ["VERSION"]

VERSION = "0.1.0"
