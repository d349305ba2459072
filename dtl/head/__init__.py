"""The softmax head and how it learns: pure NumPy, without Dask, files or networks.

It gives `model.Head`, the bytes of its file, and the arithmetic of training: the plan of rounds and
rates, steps of descent, and averages that merge in any task with the same bits.
"""
