"""Asking the machine: each probe returns facts, has a time limit, and takes an absent thing for a fact."""
