"""`trtbuild verify`: an engine or checkpoint beside the float32 model that it was made from.

subject.py     what was given, and whether it can be compared with the model       said before anything runs
text.py        text -> token ids [samples, T]
reference.py   the model in float32, a layer at a time; hidden states on disk
weights.py     every weight of every rank against the slice of the model that it stands for
trace_rank.py  the engine's own ranks on the same text, layer by layer and as a whole
measure.py     two tensors -> decibels, divergence, perplexity
diagnose.py    two weights that differ -> the likely reason
gates.py       what is good enough, for each quantization
report.py      all of it as values, and as JSON; plot.py: as a picture
"""
