"""One task in the words of each peer, for an environment without this package."""
