"""`postprocessing`: token ids to text, piece by piece, exact for every byte (see trtbuild.text.detokenize)."""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils

from trtbuild.text.tokenizer import load_tokenizer_alone
from trtbuild.triton.hangup import HangupSender
from trtbuild.triton.pieces import Pieces
from trtbuild.triton.prompts import parse_switch

PLACE = ("BATCH_INDEX", "SEQUENCE_INDEX")


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        repository = Path(args["model_repository"]).parent
        tokenizer = load_tokenizer_alone(repository / parameters["tokenizer_dir"])
        skip = parse_switch(parameters.get("skip_special_tokens"), True)
        self.pieces = Pieces(tokenizer, skip_special_tokens=skip)
        self.unended = Pieces(tokenizer, skip_special_tokens=skip, eager=True)
        self.named = parse_switch(parameters.get("stream_ids"), False)
        self.hangups = HangupSender()

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        stream = int(tensors["STREAM_ID"].reshape(-1)[0]) if "STREAM_ID" in tensors else None
        if stream is not None and request.is_cancelled():
            # The client is gone. The ensemble tells this step only; tensorrt_llm learns it from here.
            self.hangups.send(stream)
            self.pieces.drop(stream)
            gone = pb_utils.TritonError("the request was cancelled", pb_utils.TritonError.CANCELLED)
            return pb_utils.InferenceResponse(output_tensors=[], error=gone)
        rows = tensors["TOKENS_BATCH"]
        lengths = tensors["SEQUENCE_LENGTH"]
        texts = []
        for ids, length in zip(rows.reshape(lengths.size, rows.shape[-1]), lengths.reshape(-1), strict=True):
            texts.append(self.text(ids[: int(length)].tolist(), stream, tensors, request.request_id(), lengths.size))
        # One row of texts, without the batch dimension, as upstream's: its clients read OUTPUT[0].
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT", np.array(texts, dtype=object))])

    def text(self, ids, stream, tensors, request_id, rows):
        if stream is not None:
            return self.pieces.next(stream, ids, final=bool(tensors["IS_FINAL"].reshape(-1)[0])).encode()
        # TensorRT-LLM's C++ backend names no stream and no end: the request id stands in for both, so clients must
        # give every request its own id. Without an id each response is decoded alone, as upstream does. Of several
        # prompts or sequences of a request it says which one a response belongs to.
        if request_id and rows == 1 and not self.named:
            place = (int(tensors[name].reshape(-1)[0]) if name in tensors else 0 for name in PLACE)
            return self.unended.next((request_id, *place), ids, final=False).encode()
        return self.unended.whole(ids).encode()
