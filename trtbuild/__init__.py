"""trtbuild: Hugging Face checkpoint -> TensorRT-LLM engine -> Triton repository -> streamed tokens."""

__version__ = "0.1.0"
