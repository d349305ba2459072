"""The softmax head and how it learns: pure NumPy, without Dask, files or networks."""
