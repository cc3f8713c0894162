"""Stage 3a: a text and a model -> a logical quantized checkpoint, one layer in memory at a time."""
