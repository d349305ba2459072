"""Errors that a person can mend; any other is a fault of dtl."""


class UserError(ValueError):
    """Input, an option or a file that has to be changed; the message says how."""


class DifferentSettingsError(UserError):
    """Stored results that follow from other settings than the ones given now."""


class MissingExtraError(UserError, ImportError):
    """A package that one of dtl's extras installs."""
