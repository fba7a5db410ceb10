"""The literature's experiments on losses under imbalance, each a function that a notebook calls."""
