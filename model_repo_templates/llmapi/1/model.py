"""`tensorrt_llm` of the llmapi target: TensorRT-LLM's LLM class, set up by model.yaml (see trtbuild.triton.llmapi)."""

import json
import os
from pathlib import Path

import triton_python_backend_utils as pb_utils
import yaml

from trtbuild.triton.llmapi import LlmServing


class TritonPythonModel:
    def initialize(self, args):
        from tensorrt_llm import LLM, SamplingParams

        version = Path(args["model_repository"]) / args["model_version"]
        path = version / os.environ.get("LLM_CONFIG_PATH", "model.yaml")
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        options = document.pop("triton_config", None) or {}
        decoupled = pb_utils.using_decoupled_model_transaction_policy(json.loads(args["model_config"]))
        self.serving = LlmServing(pb_utils, LLM(**document), SamplingParams, options, decoupled=decoupled)

    def execute(self, requests):
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            self.serving.execute(request.request_id(), tensors, request.get_response_sender())

    def finalize(self):
        self.serving.close()
