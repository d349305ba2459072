"""Image files to pixels: which files are images, how they are read, decoded and resized.

`reading.open_images` gives the pixels of files, ahead of their use; `formats.decode` those of the
bytes of one. `recognition` tells photographs from other files, and `containers` parses them.
"""
