"""`preprocessing`: text to token ids, with transformers' own tokenization."""

import json
from pathlib import Path

import triton_python_backend_utils as pb_utils

from trtbuild.errors import TrtbuildError
from trtbuild.handover import DRAINING, Gate
from trtbuild.text.tokenizer import load_tokenizer_alone
from trtbuild.triton.prompts import Prompts, parse_switch


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        # A relative tokenizer_dir is meant from the repository, so that the repository can be moved.
        folder = Path(args["model_repository"]).parent / parameters["tokenizer_dir"]
        self.gate = Gate()
        self.prompts = Prompts(
            load_tokenizer_alone(folder),
            add_special_tokens=parse_switch(parameters.get("add_special_tokens"), True),
            max_input_len=int(parameters.get("max_input_len") or 0),
        )

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        if self.gate.closed:  # the C++ backend behind it would take the request
            refused = pb_utils.TritonError(DRAINING, pb_utils.TritonError.UNAVAILABLE)
            return pb_utils.InferenceResponse(output_tensors=[], error=refused)
        try:
            # A request parameter overrides the model's: prompts out of a chat template bring their special tokens.
            special = json.loads(request.parameters() or "{}").get("add_special_tokens")
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            outputs = self.prompts.process(tensors, special)
        except TrtbuildError as error:
            refused = pb_utils.TritonError(error.message, pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(output_tensors=[], error=refused)
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, values) for name, values in outputs.items()])
