"""Weights of a network: `loading` gives a network those that its options name, from any file.

`hdf5` reads that format in a process of its own, which imports nothing of the rest.
"""
