"""Load on running servers, and what it measures: Triton over gRPC, or anything with OpenAI's API over HTTP.

The middle is pure: `workload` says what to ask and when, `record` is what came of one request, `metrics` makes a
summary of records by genai-perf's names, `table` and `compare` look at summaries. The edges: `drive` keeps the load,
`drive_triton` and `drive_openai` ask, `memory` looks at the server's processes, `plots` draws, `files` writes and
reads, `run` goes through endpoints and levels.
"""
