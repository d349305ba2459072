"""What a run would do, read, write and take: `measuring.measure`, then `costs`, then `text`.

`measuring` and `rehearsal` find out what there is to do, and what it costs; `costs` is arithmetic on
that, and `text` lays it out for the terminal.
"""
