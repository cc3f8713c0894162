"""Stage 5 for GPUs: checkpoint -> TensorRT engine, built by TensorRT-LLM 1.2.1 under MPI or Slurm.

    options_table.py  every option of trtllm-build 1.2.1, the removed ones too                       pure
    settings.py       NAME=VALUE -> BuildOptions                                                     pure
    build_config.py   BuildOptions -> build_config.json; refusals                                    pure
    effects.py        what build() will change by itself                                             pure
    command.py        everything that is started: mpirun, srun, trtllm-build, our ranks              pure
    failures.py       a log -> one sentence and a remedy                                             pure
    gpus.py           GPUs that this host shows
    rank.py           what one MPI process runs: it builds its ranks
    supervise.py      starts them, watches logs and CPU time, ends all when one dies or hangs
    ranks.py          which ranks are finished, by hash
    outputs.py        what is checked and recorded when all have ended
    build.py          the stage

Nothing of this was run on a GPU: the facts are those of `tensorrt_llm` 1.2.1's own sources and documents, and tests
run it against a stand-in that is written from the same facts.
"""
