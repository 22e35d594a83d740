"""Our own version, for those who ask a running server what it is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def own_version() -> str:
    """Of the installed package; "unknown" where it runs from its sources alone."""
    try:
        return version("bitnet-serve")
    except PackageNotFoundError:
        return "unknown"
