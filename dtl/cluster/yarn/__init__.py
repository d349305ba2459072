"""A Dask cluster in YARN's containers, by skein."""
