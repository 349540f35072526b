"""What benchmark.py measures: ours and its peers at the same work, in turn."""
