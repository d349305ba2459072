"""Options: declared once, read from TOML and the command line, and compared with stored results."""

from dtl.config.forms import (
    Option,
    build,
    list_options,
    parse_text,
    parse_toml,
    to_dict,
    to_fingerprint,
)
from dtl.config.options import NO_URL, parse_memory
from dtl.config.retired import RETIRED
from dtl.config.sections import (
    ClusterConfig,
    Config,
    FeaturesConfig,
    ImagesConfig,
    PackConfig,
    SplitConfig,
    StorageConfig,
    YarnConfig,
)
from dtl.config.training import CompareConfig, TrainConfig, TuneConfig

__all__ = [
    "NO_URL",
    "RETIRED",
    "ClusterConfig",
    "CompareConfig",
    "Config",
    "FeaturesConfig",
    "ImagesConfig",
    "Option",
    "PackConfig",
    "SplitConfig",
    "StorageConfig",
    "TrainConfig",
    "TuneConfig",
    "YarnConfig",
    "build",
    "list_options",
    "parse_memory",
    "parse_text",
    "parse_toml",
    "to_dict",
    "to_fingerprint",
]
