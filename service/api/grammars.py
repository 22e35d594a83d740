"""The one grammar that an answer must obey: that of its tools, or that of its format. Knows no routes."""

from __future__ import annotations

from service.api.constraint_fields import read_constraint
from service.api.errors import invalid_parameter
from service.api.schemas import ChatBody, Generation
from service.api.tools import read_tools
from service.engine.grammar import Grammar
from service.engine.tools import tool_grammar


def read_grammar(body: Generation) -> Grammar | None:
    """None where anything may be written. Raises ApiError."""
    constraint = read_constraint(body)
    use = read_tools(body) if isinstance(body, ChatBody) else None
    if use is None:
        return constraint
    if constraint is not None:
        message = f"'{constraint.param}' cannot be combined with 'tools', unless 'tool_choice' is 'none'"
        raise invalid_parameter(constraint.param, message)
    return tool_grammar(use)
