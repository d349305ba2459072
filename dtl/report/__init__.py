"""Values to pages; no Dask."""
