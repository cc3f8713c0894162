"""Is this machine ready for a target, and what to do if not: probes take facts, topics judge them.

`examine.py` asks the machine (the only part with effects, in `probes/`), `judge.py` turns facts into findings without
touching anything. Facts are plain values, so those of another machine can be stored and judged here.
"""
