"""The tree of errors a user can cause. The command line prints one line and exits with `exit_code`."""


class RecsysError(Exception):
    """A mistake in data, config or artifacts. The message says where, what was found, what to do."""

    exit_code = 2


class ConfigError(RecsysError):
    """A setting is unknown, of the wrong type, or out of range."""


class DataError(RecsysError):
    """The event log cannot be used as it is: missing file or column, nothing left, bad dates."""


class RefusedError(DataError):
    """Validation refused tonight's files: damaged, empty, too many bad rows, or another header than before."""

    exit_code = 3


class LockedError(RecsysError):
    """Another run works on the same artifact."""

    exit_code = 4


class ArtifactError(RecsysError):
    """An artifact is missing, altered, truncated, of another kind or version, or of another parent."""


class DamagedError(ArtifactError):
    """A file of an artifact is missing, truncated, altered, or not what its name says."""


class ReplacedError(ArtifactError):
    """Another run has put another artifact in the place of one that is being read."""


class StoreError(RecsysError):
    """The event store cannot be opened, read or written."""


class UnknownUserError(RecsysError):
    """The user has no history where one was asked for."""


class UnknownItemError(RecsysError):
    """None of the items of a history is in the release's vocabulary."""


class GateError(RecsysError):
    """The release was refused: it would serve worse answers than its reference."""

    exit_code = 3
