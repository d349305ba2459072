"""Photographs: which files, which class, which split; tars; public data sets.

`listing.list_images` gives later stages the `values.ImageList`, `split.assign_splits` its split,
and `decoding` the pixels of its files. `bags.make_bag` gives them as a Dask bag, for work of one's
own. `packing.pack` and `fetching.fetch` fill folders with images.
"""
