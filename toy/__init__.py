"""Toy stories from a grammar of our own, for those who have no data at hand."""
