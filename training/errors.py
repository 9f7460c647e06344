"""Errors that end a stage and that its user can act on; `python -m training` shows them as one line."""


class StageError(Exception):
    """A stage cannot go on. The message says why, and which file, row or server it is about."""


class DryRun(Exception):
    """Carries the plan of a run to the command line, where it is printed: the run ends here, and well."""
