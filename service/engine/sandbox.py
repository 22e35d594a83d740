"""A jinja2 environment for templates of strangers: no way out, and a bound on time and memory.

jinja2's ImmutableSandboxedEnvironment stops code execution; it does not stop 'a' * 2e9 or nested loops. On top of it:
every loop turn and macro call ticks against a limit of CPU time; every output, concatenation, list and result of
an operator, filter or call is measured against a limit of characters, the worst multipliers before they run.

What stays unbounded: one single filter or string method on values within the limit (a quadratic search, say, in a
megabyte of text) is not interrupted, and may briefly hold a multiple of the limit. Templates come from the operator's
checkpoint, never from a request.

Knows nothing of chats. The render settings (trim_blocks, lstrip_blocks, loop controls, `raise_exception`,
`strftime_now`, plain `tojson`) are those of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import wraps
from itertools import islice
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from service.engine.render_budget import BudgetError, current_budget, written_size

MAX_ARGUMENT = 10_000
"""A number above this is no sensible width, indent or count of a filter."""
MAX_EXPONENT = 64
MAX_BITS = 4096
# Methods whose result can be any size and which no chat template needs.
MULTIPLYING_METHODS = frozenset(
    ["center", "encode", "expandtabs", "format_map", "ljust", "maketrans", "rjust", "to_bytes", "translate", "zfill"]
)
# A width of five digits, a width taken from an argument, or a nested replacement field.
WIDE_FORMAT = re.compile(r"\d{5}|\*|\{[^{}]*\{")


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The environment; a template of it may be rendered by several threads at once, each inside its own `spending`."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag], finalize=_metered_output
        )
        self.filters = {name: _metered_filter(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = _metered_filter("tojson", tojson)
        del self.globals["lipsum"]
        self.globals.update(raise_exception=raise_exception, strftime_now=strftime_now, namespace=PlainNamespace)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Meter().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in MULTIPLYING_METHODS and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return current_budget().measured(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(obj, "__wrapped__", obj)  # jinja2 wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_text_arguments(method.__name__, owner, args)
        return current_budget().measured(super().call(context, obj, *args, **kwargs))

    def tick(self, num_chars: int) -> str:
        """Called by every turn of a loop and every call of a macro, with the length of the plain text in it."""
        current_budget().spend(num_chars)
        return ""

    def concat_values(self, *values: Any) -> str:
        """The operator ~."""
        budget = current_budget()
        texts = [str(budget.measured(value)) for value in values]
        budget.check_size(sum(map(len, texts)))
        return "".join(texts)

    def measured(self, value: Any) -> Any:
        """A list, tuple or dict that the template writes down."""
        return current_budget().measured(value)


class GenerationTag(Extension):
    """{% generation %} marks the assistant's words for training; here it only groups them."""

    tags = {"generation"}  # noqa: RUF012 (the type jinja2 declares)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Meter(NodeTransformer):
    """Puts the environment's meters into a syntax tree, where jinja2 has no hook for them."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002 (jinja2's signature)
        match node:
            case nodes.For() | nodes.Macro() | nodes.CallBlock():
                num_chars = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
                self.generic_visit(node)
                node.body.insert(0, nodes.ExprStmt(_call("tick", [nodes.Const(num_chars)])))
            case nodes.Concat():
                self.generic_visit(node)
                return _call("concat_values", node.nodes)
            case nodes.List() | nodes.Dict() | nodes.Tuple(ctx="load"):
                self.generic_visit(node)
                return _call("measured", [node])
            case _:
                self.generic_visit(node)
        return node


def _call(method: str, args: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(method), args, [], None, None)


class PlainNamespace(Namespace):
    """jinja2's namespace without names that reach into Python, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # not `self`, so that a template may use that name
        for name in dict(*args[1:], **kwargs):
            _refuse_private(name)
        Namespace.__init__(*args, **kwargs)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def raise_exception(message: str) -> None:
    """How a template refuses a conversation."""
    raise TemplateError(message)


def strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON with the keys in their own order and no HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _metered_output(value: Any) -> Any:
    """Account for a value that is written; only data is written, never an object with a text form of its own."""
    budget = current_budget()
    if isinstance(value, str):
        budget.spend(len(value))
    elif isinstance(value, (list, tuple, Mapping, set)):
        budget.spend(written_size(budget.measured(value), budget.max_size))
    elif value is not None and not isinstance(value, (bool, int, float, Undefined)):
        raise SecurityError(f"a template cannot write a {type(value).__name__}")
    return value


def _metered_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    num_hidden = 1 if hasattr(function, "jinja_pass_arg") else 0  # the environment or context comes first

    @wraps(function)
    def metered(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        hidden, value, others = args[:num_hidden], args[num_hidden], args[num_hidden + 1 :]
        for number in (*others, *kwargs.values()):
            if isinstance(number, (int, float)) and number > MAX_ARGUMENT:
                raise BudgetError(f"the template calls {name} with {number:.0f}")
        if not isinstance(value, (str, Mapping, Sequence, Undefined)) and hasattr(value, "__iter__"):
            value = list(islice(value, budget.max_size))
        if name == "join" and isinstance(value, Sequence):
            separator = str(others[0] if others else kwargs.get("d", ""))
            budget.check_size(written_size(value, budget.max_size) + len(value) * len(separator))
        elif isinstance(value, str):
            _check_text_arguments(name, value, others)
        else:
            budget.measured(value)
        return budget.measured(function(*hidden, value, *others, **kwargs))

    return metered


def _check_text_arguments(method: str, text: str, args: Sequence[Any]) -> None:
    """Refuse, before it runs, a method or filter whose result would be far larger than what goes in."""
    budget = current_budget()
    if method == "format" and WIDE_FORMAT.search(text):
        raise BudgetError("the template formats with a width that is too large or computed")
    if method == "replace" and len(args) >= 2:
        old, new = str(args[0]), str(args[1])
        budget.check_size(len(text) + text.count(old) * len(new))
    if method == "join" and args and isinstance(args[0], Sequence):
        budget.check_size(written_size(args[0], budget.max_size) + len(args[0]) * len(text))


def _check_operands(operator: str, left: Any, right: Any) -> None:
    budget = current_budget()
    if operator == "**":
        if abs(right) > MAX_EXPONENT or abs(left) > MAX_ARGUMENT:
            raise BudgetError("the template raises to too high a power")
    elif operator == "%":
        if isinstance(left, str):
            _check_text_arguments("format", left, ())
    elif operator == "*":
        for sequence, factor in ((left, right), (right, left)):
            if isinstance(sequence, (str, list, tuple)) and isinstance(factor, int):
                budget.check_size(written_size(sequence, budget.max_size) * max(factor, 0))
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MAX_BITS:
            raise BudgetError("the template computes too large a number")
    elif isinstance(left, (str, list, tuple)) and isinstance(right, type(left)):
        budget.check_size(len(left) + len(right))
