"""Where work runs, and how it is spread over workers.

`connection` gives a Dask client of this machine, YARN or a running scheduler. `chunks` maps a
function over chunks; `spread` submits the tasks of a training; `workers` tells what workers can
reach; `progress` shows how far a stage is. `environment` packs the Python that runs, for `yarn`.
"""
