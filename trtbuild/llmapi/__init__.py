"""The target `llmapi`: a quantized Hugging Face checkpoint in NVIDIA ModelOpt's unified layout.

The same quantizers as for a TensorRT-LLM checkpoint, another writer: names, groups and files are what `trtllm-serve`
(TensorRT-LLM's PyTorch backend) and vLLM load. Nothing is cut for ranks; the loader does that.
"""
