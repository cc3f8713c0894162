"""Stage 3: weights -> quantized fields. A method is a declaration in `methods/`; its arithmetic imports torch late."""
