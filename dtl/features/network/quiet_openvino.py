"""OpenVINO and NNCF, imported without their telemetry; no other module imports them."""

from __future__ import annotations

import sys
from typing import Any

from dtl.config.errors import UserError

__all__ = ["import_nncf", "openvino"]

_ADVICE = (
    "`features.engine` = openvino needs the extra. In dtl's folder, where the command and "
    "all workers run: pip install -e '.[openvino]'."
)

# Both would tell a server about their use. Without this package they do not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
try:
    import openvino
except ImportError as error:
    raise UserError(f"OpenVINO cannot be imported ({error}). {_ADVICE}") from error


def import_nncf() -> Any:
    """Import NNCF, which only a quantization needs."""
    try:
        import nncf
    except ImportError as error:
        raise UserError(f"NNCF cannot be imported ({error}). {_ADVICE}") from error
    nncf.set_log_level("ERROR")
    return nncf
