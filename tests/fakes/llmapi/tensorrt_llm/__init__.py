"""Stand-in for the LLM class of TensorRT-LLM 1.2.1; see tests/fakes/README.md. It repeats the prompt, character by
character, and has no model."""

import asyncio
from types import SimpleNamespace

STEP_S = 0.005


class SamplingParams:
    """Of its arguments only max_tokens, stop and add_special_tokens do something; the defaults are the real ones."""

    def __init__(self, max_tokens=32, stop=None, add_special_tokens=True, **others):
        known = {"best_of", "temperature", "top_k", "top_p", "frequency_penalty", "presence_penalty", "seed"}
        known |= {"repetition_penalty", "min_tokens", "end_id", "ignore_eos", "bad"}
        if set(others) - known - {"return_perf_metrics", "exclude_input_from_output"}:
            raise TypeError(f"unexpected arguments {set(others) - known}")
        self.max_tokens = max_tokens
        self.stop = stop or []
        self.add_special_tokens = add_special_tokens


class LLM:
    """Takes what model.yaml holds, and refuses what the real class would not know."""

    def __init__(self, model, backend="pytorch", tensor_parallel_size=1, pipeline_parallel_size=1,
                 kv_cache_config=None, enable_chunked_prefill=False):  # fmt: skip
        assert backend == "pytorch"
        self.aborted = 0

    def generate_async(self, inputs, sampling_params=None, streaming=False):
        if inputs == "fail":
            raise RuntimeError("no room")
        return RequestOutput(self, inputs, sampling_params, streaming)

    def shutdown(self):
        print("LLM was shut down", flush=True)


class RequestOutput:
    """Awaited it is the whole answer; iterated (streaming) it gives the text so far, as the real one does."""

    def __init__(self, llm, prompt, params, streaming):
        self._llm, self._prompt, self._params, self._streaming = llm, prompt, params, streaming
        self._aborted = False
        self._count = 0
        self.finished = False
        self.prompt_token_ids = [0] * params.add_special_tokens + list(map(ord, prompt))
        self.outputs = [
            SimpleNamespace(text="", token_ids=[], finish_reason=None, stop_reason=None, cumulative_logprob=None)
        ]

    def abort(self):
        self._aborted = True
        self._llm.aborted += 1

    def __aiter__(self):
        assert self._streaming
        return self

    async def __anext__(self):
        if self.finished:
            raise StopAsyncIteration
        await self._step()
        return self

    def __await__(self):
        return self._whole().__await__()

    async def _whole(self):
        while not self.finished:
            await self._step()
        return self

    async def _step(self):
        await asyncio.sleep(STEP_S)
        self._count += 1
        done = self.outputs[0]
        repeated = (self._prompt * (self._count // len(self._prompt) + 1))[: self._count]
        done.text, done.token_ids = repeated, list(map(ord, repeated))
        for stop in self._params.stop:
            if stop in repeated:
                done.text, done.finish_reason, done.stop_reason = repeated[: repeated.find(stop)], "stop", stop
        if self._prompt == "aborts?" and self._llm.aborted and not done.finish_reason:
            done.text, done.finish_reason = f"aborted {self._llm.aborted}", "stop"
        if not done.finish_reason and self._count >= self._params.max_tokens:
            done.finish_reason = "length"
        self.finished = done.finish_reason is not None
