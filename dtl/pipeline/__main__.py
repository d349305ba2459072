"""``dtl``, and ``python -m dtl.pipeline``."""

from dtl.pipeline.process import enter

if __name__ == "__main__":
    enter()
