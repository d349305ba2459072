"""OpenVINO and NNCF, imported without their telemetry; no other module imports them."""

from __future__ import annotations

import sys
from typing import Any

from dtl.config.errors import UserError

__all__ = ["core", "import_nncf", "openvino"]

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

# One for as long as the process lives. Each has a stack for signals, which it gives the thread that
# compiles first, and takes away when it goes: the next Ctrl-C there would be a segmentation fault.
core = openvino.Core()
# Files may be copies that go, or be written again while this process runs.
core.set_property({"ENABLE_MMAP": False})


def import_nncf() -> Any:
    """Import NNCF, which only a quantization needs."""
    try:
        import nncf
    except ImportError as error:
        raise UserError(f"NNCF cannot be imported ({error}). {_ADVICE}") from error
    nncf.set_log_level("ERROR")
    return nncf
