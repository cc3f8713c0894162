"""A request's body -> generations of Triton -> pieces of its choices."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace

from trtbuild.client import AsyncClient, Generation
from trtbuild.client.answers import finish_reason
from trtbuild.errors import EngineError
from trtbuild.openai.answers import Piece
from trtbuild.openai.errors import ApiError
from trtbuild.openai.options import OpenAiOptions
from trtbuild.openai.schema import ChatRequest, CompletionRequest
from trtbuild.openai.tokens import Token, TokenLine
from trtbuild.text.chat import ChatTemplate, load_chat_template
from trtbuild.text.stops import StopFilter


@dataclass(frozen=True)
class Served:
    """A model for clients: Triton's name of it, and its chat template, if it has one."""

    name: str
    model: str
    template: ChatTemplate | None


class Service:
    """Generations for the routes; `client` is shared by all of them.

    Raises:
        EngineError: a tokenizer folder has no chat template that can be read.
    """

    def __init__(self, options: OpenAiOptions, client: AsyncClient) -> None:
        self.options = options
        self.client = client
        self.models = {
            each.name: Served(
                each.name, each.model, None if each.tokenizer is None else load_chat_template(each.tokenizer)
            )
            for each in options.models
        }

    def served(self, name: str) -> Served:
        """Raises:
        ApiError: there is no such model.
        """
        if name not in self.models:
            said = f"the model {name!r} is not served here; there is {', '.join(self.models)}"
            raise ApiError(404, said, param="model", code="model_not_found")
        return self.models[name]

    async def tokens_of_all(self) -> int:
        """One token of each model, generated now; how many that are."""
        one = Generation("Hi", max_tokens=1, end_id=-1)
        models = {served.model for served in self.models.values()}
        answers = await asyncio.gather(*(self.client.infer(one, model=model, deadline_s=10) for model in models))
        return sum(answer.token_count for answer in answers)

    def generations(self, served: Served, body: ChatRequest | CompletionRequest) -> list[Generation]:
        """One for each choice, in order: `n` for each prompt.

        Raises:
            ApiError: the prompt is too long, or wants what is not served.
        """
        chat = isinstance(body, ChatRequest)
        prompts = [_chat_prompt(served, body)] if isinstance(body, ChatRequest) else body.prompts
        longest = max(map(len, prompts))
        if longest > self.options.max_prompt_chars:
            raise ApiError(413, f"the prompt has {longest} characters, {self.options.max_prompt_chars} are allowed")
        first = self._first(body, chat)
        seed = body.seed if body.seed is not None else secrets.randbits(62)
        return [
            replace(first, prompt=prompt, seed=(seed + number) % 2**63)
            for prompt in prompts
            for number in range(body.n)
        ]

    def _first(self, body: ChatRequest | CompletionRequest, chat: bool) -> Generation:
        more = body.max_completion_tokens if isinstance(body, ChatRequest) else None
        guide_type, guide = self._guide(body)
        return Generation(
            "",
            max_tokens=more or body.max_tokens or self.options.default_max_tokens,
            # OpenAI samples where nothing is said.
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=body.top_p,
            top_k=body.top_k,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty,
            frequency_penalty=body.frequency_penalty,
            min_tokens=body.min_tokens,
            stop=body.stops,
            cut_stops=False,  # `_choice` does it
            end_id=-1 if body.ignore_eos else None,
            add_special_tokens=False if chat else None,  # the template wrote them
            log_probs=bool(body.logprobs) if isinstance(body, ChatRequest) else body.logprobs is not None,
            count_prompt=True,
            guide_type=guide_type,
            guide=guide,
        )

    def _guide(self, body: ChatRequest | CompletionRequest) -> tuple[str | None, str | None]:
        form = body.response_format
        if form is None or form.type == "text":
            return None, None
        if not self.options.guided:
            raise ApiError(400, "guided decoding is not on at this server", param="response_format")
        if form.json_schema is not None:
            return "json_schema", json.dumps(form.json_schema.schema_)
        return "json", None

    async def pieces(
        self, served: Served, generations: Sequence[Generation], request_id: str
    ) -> AsyncGenerator[Piece, None]:
        """Pieces of all choices as they come; closing it ends the generations on the server."""
        if len(generations) == 1:
            async with aclosing(self._choice(served, 0, generations[0], request_id)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        queue: asyncio.Queue[Piece | None] = asyncio.Queue()
        async with AsyncExitStack() as stack:
            tasks = []
            for index, generation in enumerate(generations):
                tasks.append(asyncio.create_task(self._into(queue, served, index, generation, f"{request_id}-{index}")))
                stack.push_async_callback(_ended, tasks[-1])
            running = len(tasks)
            while running:
                item = await queue.get()
                if item is not None:
                    yield item
                    continue
                running -= 1
                for task in tasks:
                    if task.done():
                        task.result()  # raises what the choice ended with

    async def _into(
        self, queue: asyncio.Queue[Piece | None], served: Served, index: int, generation: Generation, key: str
    ) -> None:
        """All pieces of one choice, then None, however it ended."""
        try:
            async with aclosing(self._choice(served, index, generation, key)) as pieces:
                async for piece in pieces:
                    queue.put_nowait(piece)
        finally:
            asyncio.get_running_loop().call_soon(queue.put_nowait, None)  # when the task is done

    async def _choice(
        self, served: Served, index: int, generation: Generation, request_id: str
    ) -> AsyncGenerator[Piece, None]:
        """One choice: text without stop strings, and why it ended."""
        stops = StopFilter(generation.stop)
        line = TokenLine() if generation.log_probs else None
        tokens: tuple[Token, ...] = ()
        total = prompt = 0
        told: str | None = None
        stream = self.client.stream(generation, model=served.model, request_id=request_id, stall_s=self.options.stall_s)
        async with aclosing(stream) as chunks:
            async for chunk in chunks:
                total += chunk.token_count
                prompt = chunk.prompt_tokens or prompt
                told = chunk.finish_reason or told
                text = stops.push(chunk.text)
                reason = None
                if stops.stopped:
                    reason = "stop"
                elif chunk.final:
                    text += stops.flush()
                    reason = finish_reason(told, total, generation.max_tokens)
                    if told is None and reason == "stop" and await self._full(served, prompt + total):
                        reason = "length"
                if line is not None:
                    line.push(chunk.text, chunk.log_probs)
                    tokens = line.take(text, ended=reason is not None)
                if text or chunk.token_count or reason or chunk.prompt_tokens is not None:
                    yield Piece(index, text, chunk.token_count, tokens, chunk.prompt_tokens, reason)
                if reason:
                    return

    async def _full(self, served: Served, length: int) -> bool:
        """Whether a prompt and its answer of `length` tokens have filled the engine."""
        room = await self.client.room(served.model)
        return room is not None and length >= room


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


def _chat_prompt(served: Served, body: ChatRequest) -> str:
    if served.template is None:
        raise ApiError(400, f"{served.name} has no chat template; use /v1/completions", param="messages")
    messages = [
        {"role": "system" if message.role == "developer" else message.role, "content": message.text}
        for message in body.messages
    ]
    try:
        return served.template.render(messages)
    except EngineError as error:
        raise ApiError(400, error.message, param="messages") from error
