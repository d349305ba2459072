"""The timeline of a run: which stage and which worker did what when, and with how much memory.

A `Record` lies in the scheduler and takes the workers' tasks as they end; `values` is what a file
keeps of it, with the driver's stages, for each process that worked on a folder; `figures` counts
what a reader is told. Nothing here knows Dask.
"""
