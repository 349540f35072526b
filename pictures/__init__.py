"""All pictures of the project: figures from numbers that others have worked out. Each returns it, and writes it."""
