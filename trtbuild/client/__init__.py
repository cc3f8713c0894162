"""Stage 8: prompts to a running server, text back as it is made. Needs tritonclient and numpy, no torch."""

from trtbuild.client.payload import Generation
from trtbuild.client.stream import Chunk, generate_stream

__all__ = ["Chunk", "Generation", "generate_stream"]
