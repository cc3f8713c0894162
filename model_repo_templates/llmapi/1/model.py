"""TensorRT-LLM's PyTorch backend behind the tensors of upstream's llmapi model (see trtbuild.triton.llmapi)."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from trtbuild.triton.llmapi import LlmService


class TritonPythonModel:
    def initialize(self, args):
        version = Path(args["model_repository"]) / args["model_version"]
        self.service = LlmService(pb_utils, json.loads(args["model_config"]), version)

    def execute(self, requests):
        """Hands the requests over and returns; responses follow through each request's sender."""
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            self.service.execute(request.request_id(), tensors, request.get_response_sender())

    def finalize(self):
        self.service.close()
