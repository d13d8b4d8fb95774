"""How fast the layer is here, as ratios to nn.LSTM measured in the same run."""
