"""Text and token ids: tokenizers, incremental detokenization, word lists and chat templates."""
