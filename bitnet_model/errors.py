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
        shown = self.problems[:MAX_SHOWN_PROBLEMS]
        hidden = len(self.problems) - len(shown)
        lines = [f"cannot serve {source}:", *(f"  - {problem}" for problem in shown)]
        if hidden:
            lines.append(f"  ... and {hidden} more problems")
        super().__init__("\n".join(lines))
