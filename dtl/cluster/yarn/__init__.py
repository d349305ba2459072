"""A Dask cluster in YARN's containers, by skein, laid out as dask-yarn did.

An application has a service ``dask.scheduler`` and a service ``dask.worker``, and, where the driver
is submitted too, ``dask.client``.

`resource_manager` is the way to YARN. `capacity` refuses what YARN cannot give; `specification` is
what it is asked for. `application` is a cluster for a driver on this machine, `submission` a driver
in a container. `containers` runs inside, beside Dask.
"""

from dtl.config.errors import MissingExtraError

try:
    import skein as skein
except ImportError as error:
    raise MissingExtraError(
        f"YARN needs the package skein. In dtl's folder: pip install -e '.[yarn]' ({error})."
    ) from error
