"""What the training scripts share: options, the loop, fine-tuning, pre-training, several processes."""
