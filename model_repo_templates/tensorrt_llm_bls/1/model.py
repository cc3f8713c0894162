"""`tensorrt_llm_bls`: text to text around `tensorrt_llm` (see trtbuild.triton.bls)."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from trtbuild.triton.bls import Bls


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        decoupled = pb_utils.using_decoupled_model_transaction_policy(config)
        self.bls = Bls(pb_utils, parameters, Path(args["model_repository"]).parent, decoupled=decoupled)

    def execute(self, requests):
        """Hands the requests over and returns; responses follow through each request's sender, decoupled or not."""
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            self.bls.execute(tensors, json.loads(request.parameters() or "{}"), request.get_response_sender())

    def finalize(self):
        self.bls.close()
