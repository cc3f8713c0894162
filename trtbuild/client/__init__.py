"""Stage 8: prompts to a running server, text back as it is made. Needs tritonclient and numpy, no torch.

    with Client("127.0.0.1:8001") as client:
        for chunk in client.stream(Generation("The capital of France is")):
            print(chunk.text, end="")

`AsyncClient` is the same for asyncio.
"""

from trtbuild.client.aio import AsyncClient
from trtbuild.client.answers import Chunk, Completion
from trtbuild.client.options import Reach, Retry, Tls
from trtbuild.client.payload import Generation
from trtbuild.client.stream import generate_stream
from trtbuild.client.sync import Client

__all__ = ["AsyncClient", "Chunk", "Client", "Completion", "Generation", "Reach", "Retry", "Tls", "generate_stream"]
