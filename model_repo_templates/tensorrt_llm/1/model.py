"""`tensorrt_llm` for the cpu target: the ranks of a cpu engine behind the tensors of TensorRT-LLM's Triton backend."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from trtbuild.triton.metrics import MetricsReporter
from trtbuild.triton.serving import Serving


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.serving = Serving(pb_utils, config, Path(args["model_repository"]) / args["model_version"])
        period = float(config["parameters"].get("stats_check_period_ms", {}).get("string_value") or 100) / 1000
        self.metrics = MetricsReporter(pb_utils, args["model_name"], args["model_version"], self.serving.stats, period)

    def execute(self, requests):
        """Hands the requests over and returns; responses follow through each request's sender, decoupled or not."""
        for request in requests:
            tensors = {}
            for tensor in request.inputs():
                tensors[tensor.name()] = tensor.as_numpy().copy()  # the memory is Triton's, and only lent
            self.serving.execute(request.request_id(), tensors, request.get_response_sender())

    def finalize(self):
        self.metrics.close()
        self.serving.close()
