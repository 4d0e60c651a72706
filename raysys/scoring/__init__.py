"""What a serving process knows of a model: NumPy and compiled code on mapped rows, no Torch."""
