"""Faults of the images: wrong labels, near-duplicates, odd images, classes that overlap.

Others use `inspection.check` and the values in `values`.
"""
