"""Published results as data."""

PAPERS = {}
