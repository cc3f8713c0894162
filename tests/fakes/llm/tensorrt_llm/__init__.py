"""Stands in for TensorRT-LLM's LLM API, which cannot be installed here: it says a prompt's words backwards.

Only what model.py of the llmapi repository touches, with the names and the asynchronous forms of release 1.2.
"""

import asyncio
from types import SimpleNamespace


class SamplingParams:
    def __init__(
        self, *, best_of=None, exclude_input_from_output=True, max_tokens=32, stop=None, top_k=None, seed=None
    ):
        if max_tokens < 1:
            raise ValueError(f"max_tokens {max_tokens} must be positive")
        self.max_tokens, self.stop, self.echo = max_tokens, stop or [], not exclude_input_from_output


class _Result:
    def __init__(self, prompt, params):
        self._words = [f"{word} " for word in reversed(prompt.split())][: params.max_tokens]
        self._text = f"{prompt}|" if params.echo else ""
        self._params, self._aborted = params, False

    def abort(self):
        self._aborted = True

    def _step(self, reason=None, stop=None):
        output = SimpleNamespace(text=self._text, finish_reason=reason, stop_reason=stop, cumulative_logprob=-1.5)
        return SimpleNamespace(outputs=[output])

    async def __aiter__(self):
        for word in self._words:
            await asyncio.sleep(0.02)
            if self._aborted:
                yield self._step("cancelled")
                return
            if word.strip() in self._params.stop:
                yield self._step("stop", word.strip())
                return
            self._text += word
            yield self._step()
        yield self._step("length")

    def __await__(self):
        return self._last().__await__()

    async def _last(self):
        return [step async for step in self][-1]


class LLM:
    def __init__(self, model, backend, tensor_parallel_size, pipeline_parallel_size, kv_cache_config=None):
        assert backend == "pytorch"
        self.model = model

    def generate_async(self, inputs, sampling_params=None, streaming=False):
        return _Result(inputs, sampling_params)

    def shutdown(self):
        print("LLM was shut down", flush=True)
