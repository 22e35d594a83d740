"""The errors of this floor; importable without torch.

BackendUnavailable (RuntimeError)
    a wing that was asked for by name cannot run here.
CheckpointError
    one instance carries every problem found, so that a user repairs a folder in one round, not in one per problem.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_SHOWN_PROBLEMS = 40


class BackendUnavailable(RuntimeError):  # noqa: N818 -- named after the condition, as the engine's errors are
    """A backend or instruction set asked for by name cannot run here; the message names the cure."""


class CheckpointError(Exception):
    """A checkpoint folder that is refused; `problems` holds each reason as one sentence."""

    def __init__(self, source: object, problems: Sequence[str]) -> None:
        assert problems, "a refusal needs a reason"
        self.problems = tuple(problems)
        super().__init__(f"cannot use {source}:" + _listed(self.problems))


def _listed(problems: Sequence[str]) -> str:
    """One problem on the same line, several on a line each."""
    if len(problems) == 1:
        return f" {problems[0]}"
    hidden = len(problems) - MAX_SHOWN_PROBLEMS
    more = [f"... and {hidden} more problems"] if hidden > 0 else []
    return "".join(f"\n  - {problem}" for problem in [*problems[:MAX_SHOWN_PROBLEMS], *more])
