"""Stands in for TensorRT-LLM's C++ backend in leader mode (triton-repo 11.3), as a Triton backend written in Python.

Ranks above 0 never return from their initialization, and do what rank 0 broadcasts; a request is answered with its own
tokens, again and again, one every few milliseconds, and every step goes through all ranks. Sequence n begins with token
n, and each response says whose it is, where there are several (triton-repo 4.3), as the C++ does.
"""

import json
import queue
import threading
import time

import numpy as np
import triton_python_backend_utils as pb_utils

STEP_S = 0.02


def number(name, value):
    return pb_utils.Tensor(name, np.array([[value]], dtype=np.int32))


class TritonPythonModel:
    def initialize(self, args):
        from mpi4py import MPI

        self.world = MPI.COMM_WORLD
        parameters = json.loads(args["model_config"])["parameters"]
        engine = parameters["gpt_model_path"]["string_value"]
        with open(f"{engine}/config.json") as handle:
            mapping = json.load(handle)["pretrained_config"]["mapping"]
        if self.world.Get_size() != mapping["tp_size"] * mapping["pp_size"]:
            raise ValueError("With communicationMode kLEADER, MPI worldSize is expected to be equal to tp*pp*cp")
        print(f"stand-in rank {self.world.Get_rank()} of {self.world.Get_size()}", flush=True)
        while self.world.Get_rank():
            self.step(None)
        family = pb_utils.MetricFamily(
            name="nv_trt_llm_request_metrics", description="-", kind=pb_utils.MetricFamily.GAUGE
        )
        self.family, self.active = family, family.Metric(labels={"request_type": "active"})
        self.inbox = queue.SimpleQueue()
        threading.Thread(target=self.run, daemon=True).start()

    def step(self, number):
        """Every rank of the engine has a part in it."""
        told = np.array([number or 0])
        waiting = self.world.Ibcast(told, root=0)
        while not waiting.Test():  # MPI's own waiting would burn a core
            time.sleep(0.001)
        self.world.allreduce(int(told[0]))

    def run(self):
        work, steps = [], 0
        while True:
            while not work or not self.inbox.empty():
                work.append(self.inbox.get())
            self.active.set(len(work))
            steps += 1
            self.step(steps)
            time.sleep(STEP_S)
            for item in list(work):
                sender, places, tokens, length, left = item
                for place in places:
                    row = tokens[place.get("batch_index", 0)]
                    token = row[(place.get("sequence_index", 0) + length - left) % len(row)]
                    outputs = [number("num_output_tokens", 1), number("sequence_length", 1)]
                    outputs += [number("num_input_tokens", len(row))]
                    outputs += [pb_utils.Tensor("output_ids", np.array([[[token]]], dtype=np.int32))]
                    outputs += [number(name, value) for name, value in place.items()]
                    final = left == 1 and place is places[-1]
                    flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
                    sender.send(pb_utils.InferenceResponse(outputs), flags=flags)
                item[-1] = left - 1
                if left == 1:
                    work.remove(item)
            self.active.set(len(work))

    def execute(self, requests):
        for request in requests:
            tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
            guide = {name: rows.tolist() for name, rows in tensors.items() if name.startswith("guided_decoding")}
            if guide:
                print(f"stand-in was asked for {guide}", flush=True)
            rows = tensors["input_ids"]
            lengths = tensors["input_lengths"].reshape(-1)
            tokens = [row[:length].tolist() for row, length in zip(rows, lengths, strict=True)]
            count = int(tensors["num_return_sequences"].reshape(-1)[0]) if "num_return_sequences" in tensors else 1
            places = [
                {**({"batch_index": at} if len(rows) > 1 else {}), **({"sequence_index": n} if count > 1 else {})}
                for at in range(len(rows))
                for n in range(count)
            ]
            length = int(tensors["request_output_len"].reshape(-1)[0])
            self.inbox.put([request.get_response_sender(), places, tokens, length, length])
