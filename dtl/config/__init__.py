"""Options: declared once, read from TOML and the command line, and compared with stored results."""

from dtl.config.forms import (
    ADDED,
    RETIRED,
    Option,
    build,
    list_options,
    parse_text,
    parse_toml,
    to_dict,
    to_fingerprint,
)
from dtl.config.options import parse_memory
from dtl.config.secrets import hide, hide_options, is_hidden
from dtl.config.sections import (
    ClusterConfig,
    Config,
    FeaturesConfig,
    ImagesConfig,
    SplitConfig,
    TrainConfig,
    YarnConfig,
)
from dtl.config.tools import CheckConfig, CompareConfig, PackConfig, TuneConfig

__all__ = [
    "ADDED", "RETIRED", "CheckConfig", "ClusterConfig", "CompareConfig", "Config", "FeaturesConfig",
    "ImagesConfig", "Option", "PackConfig", "SplitConfig", "TrainConfig", "TuneConfig",
    "YarnConfig", "build", "hide", "hide_options", "is_hidden", "list_options", "parse_memory",
    "parse_text", "parse_toml", "to_dict", "to_fingerprint",
]  # fmt: skip
