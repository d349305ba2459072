"""Faults of the images: wrong labels, near-duplicates, odd images, classes that overlap.

Others use `doctor.check` and the values in `values`.
"""
