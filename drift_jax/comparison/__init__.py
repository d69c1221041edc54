"""Several methods under one budget: which runs, in which processes, and what they say together."""
