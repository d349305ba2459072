"""What a run would do, read, write and take: `measuring.measure`, then `costs`, then `text`.

`costs` is arithmetic on what `measuring` has found out; `text` lays it out for the terminal.
"""
