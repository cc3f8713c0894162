"""`tensorrt_llm_bls`: text in, text out, by calling preprocessing and tensorrt_llm (see trtbuild.triton.bls)."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from trtbuild.text.tokenizer import load_tokenizer_alone
from trtbuild.triton.bls import Bls


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]).parent / config["parameters"]["tokenizer_dir"]["string_value"]
        self.bls = Bls(pb_utils, config, load_tokenizer_alone(folder))

    def execute(self, requests):
        """Hands the requests over and returns; answers follow through each request's sender."""
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy().copy() for tensor in request.inputs()}
            self.bls.execute(request, tensors, request.get_response_sender())

    def finalize(self):
        self.bls.close()
