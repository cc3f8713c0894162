"""What a model needs on GPUs and on the host, before any of it is paid for. PURE: numbers, names and tables.

- `gpus.py`: the GPUs, as data
- `legality.py`: precision x GPU x TensorRT-LLM release
- `target.py`: what is to be served, and the limits of an engine
- `geometry.py`: the sizes of a model that memory depends on
- `memory.py`: bytes on each rank, and the sequences that fit
- `host.py`: host memory, disk and time of each stage
- `described.py`: headers of a model of which only config.json is here
- `estimate.py`: all of it for one plan
- `fit.py`: which TP x PP x quantization x KV cache x batch meets a target
"""
