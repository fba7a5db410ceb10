"""Sections on what probabilities mean."""
def reliability(x): return None
def decisions(x): return None
def mending(x): return None
