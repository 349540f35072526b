"""The tasks that the papers fine-tune on: how their examples are laid out for the models."""
