"""What a run would do, read, write and take: `measuring.measure`, then `text.format_forecast`.

`measuring` and `rehearsal` find out what is left and what it costs; `costs` is arithmetic on that.
"""
