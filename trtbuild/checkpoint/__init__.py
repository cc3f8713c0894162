"""Stage 2: a Hugging Face folder in, a TensorRT-LLM checkpoint out."""
