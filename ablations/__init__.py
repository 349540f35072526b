"""What the ablations of GPT-1's paper change: the LSTM in the Transformer's place."""
