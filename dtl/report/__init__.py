"""Pages of results: `page` lays them out, `plots` draws; no Dask."""
