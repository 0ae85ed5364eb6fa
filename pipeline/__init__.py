"""The hands: command line, datasets, splits, demo."""
