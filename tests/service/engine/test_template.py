from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.engine.errors import RequestError
from service.engine.prompt import Message
from service.engine.template import ChatTemplate, TemplateSourceError, find_template

HELLO = [Message("system", "Be brief."), Message("user", " Hello <b> & 'you' "), Message("assistant", "Hi")]
BITNET = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def render(source: str, messages: list[Message] | None = None, **special: str) -> str:
    return ChatTemplate(source, special, max_cpu_s=0.2).render(HELLO if messages is None else messages)


def test_the_bitnet_template_renders_as_published() -> None:
    assert render(BITNET) == (
        "System: Be brief.<|eot_id|>User: Hello <b> & 'you'<|eot_id|>Assistant: Hi<|eot_id|>Assistant: "
    )


def test_blocks_are_trimmed_and_loops_can_break() -> None:
    source = """{% for m in messages %}
    {% if loop.index > 2 %}
        {% break %}
    {% endif %}
{{ m.role }}
{% endfor %}
end"""
    assert render(source) == "system\nuser\nend"


def test_tojson_keeps_order_and_escapes_no_html() -> None:
    assert render("{{ messages[1] | tojson }}") == '{"role": "user", "content": " Hello <b> & \'you\' "}'
    assert render("{{ {'b': 'é', 'a': 1} | tojson(indent=1) }}") == '{\n "b": "é",\n "a": 1\n}'


def test_templates_see_the_special_tokens_and_no_tools() -> None:
    assert render("{{ bos_token }}{{ eos_token }}{{ tools is none }}", bos_token="<s>") == "<s>True"


def test_the_generation_tag_only_groups() -> None:
    assert render("{% generation %}{{ messages[2].content }}{% endgeneration %}") == "Hi"


def test_namespaces_macros_and_string_methods_work() -> None:
    source = (
        "{% set ns = namespace(n=0) %}{% macro say(m) %}[{{ m.role.upper() ~ ':' ~ m.content.strip() }}]{% endmacro %}"
        "{% for m in messages if m.role != 'system' %}{% set ns.n = ns.n + 1 %}{{ say(m) }}{% endfor %}"
        "{{ ns.n * 2 }} {{ messages | map(attribute='role') | join(',') }} {{ 'a-b'.split('-')[-1] }} {{ [1] + [2] }}"
        " {{ '%s=%d' % ('x', 3) }} {{ '{}!'.format('y') }} {{ (messages | selectattr('role', 'equalto', 'user') | list)"
        " | length }} {{ 'abc'.replace('b', '--') }}"
    )
    assert render(source) == "[USER:Hello <b> & 'you'][ASSISTANT:Hi]4 system,user,assistant b [1, 2] x=3 y! 1 a--c"


def test_what_the_template_refuses_is_the_requests_fault_with_its_words() -> None:
    with pytest.raises(RequestError, match="roles must alternate") as caught:
        render("{{ raise_exception('roles must alternate') }}")
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[9].content + 'x' }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ dict }}",
    ],
)
def test_a_template_that_fails_is_a_request_error(source: str) -> None:
    with pytest.raises(RequestError):
        render(source)


HOSTILE = [
    "{{ 'a' * 2000000000 }}",
    "{{ [0] * 500000000 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set x = [9 ** 60] %}{% for i in range(30) %}{% set x = x %}{% endfor %}{{ (9 ** 60) ** 60 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(90) }}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set ns.x = ns.x * 9 %}{% endfor %}",
    "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}"
    "{% set ns.x = y %}{% endfor %}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=['a']) %}{% for i in range(60) %}{% set ns.x = [ns.x] + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x={}) %}{% for i in range(60) %}{% set ns.x = dict(a=ns.x, b=ns.x) %}{% endfor %}{{ ns.x }}",
    "{% set n = namespace(x=1) %}{% for i in range(60) %}{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n.x }}",
    "{{ 'a' | center(2000000000) }}",
    "{{ 'a'.center(2000000000) }}",
    "{{ 'a'.ljust(2000000000) }}",
    "{{ '%2000000000d' % 1 }}",
    "{{ '%*d' % (2000000000, 1) }}",
    "{{ '{:2000000000}'.format(1) }}",
    "{{ '{:{w}}'.format(1, w=2000000000) }}",
    "{{ '%2000000000d' | format(1) }}",
    "{% set x = range(9999) | join('a') %}{{ x.replace('a', x) | length }}",
    "{% set x = range(9999) | join('a') %}{{ x | replace('a', x) | length }}",
    "{% set x = range(9999) | join('a') %}{{ range(9999) | join(x) | length }}",
    "{% set x = range(9999) | join('a') %}{{ x.join(range(9999) | map('string') | list) | length }}",
    "{{ [1] | batch(2000000000, 0) | list | length }}",
    "{{ [1] | tojson(indent=2000000000) }}",
    "{{ 'a' | indent(2000000000, true) }}",
    "{{ lipsum(n=100000) }}",
    "{{ (1).to_bytes(2000000000, 'big') | length }}",
    "{{ range(2000000000) | list | length }}",
    "{% for a in range(99999) %}" + "x" * 10_000 + "{% endfor %}",
    "{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}",
    "{{ " + "[" * 100_000 + " }}",
    "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
]


@pytest.mark.parametrize("source", HOSTILE)
def test_a_hostile_template_ends_soon_with_an_error(source: str) -> None:
    start = time.thread_time()
    with pytest.raises((RequestError, TemplateSourceError)):
        render(source)
    assert time.thread_time() - start < 2.0


def test_long_conversations_are_within_the_budget() -> None:
    messages = [Message("user", "word " * 1000) for _ in range(400)]
    assert len(render(BITNET, messages)) > 400 * 5000


def test_a_broken_template_is_refused_when_it_is_loaded() -> None:
    for source in ("{% for %}", "{{ x | nofilter }}", "x" * (2**20 + 1)):
        with pytest.raises(TemplateSourceError):
            ChatTemplate(source, {})


def test_threads_render_one_template_at_once() -> None:
    template = ChatTemplate(BITNET, {})
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda n: template.render([Message("user", str(n))]), range(200)))
    assert texts == [f"User: {n}<|eot_id|>Assistant: " for n in range(200)]


def test_the_template_file_wins_over_the_configuration(tmp_path: Path) -> None:
    assert find_template(tmp_path, {}) is None
    assert find_template(tmp_path, {"chat_template": "plain"}) == "plain"
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "first"}]
    assert find_template(tmp_path, {"chat_template": named}) == "first"
    (tmp_path / "chat_template.jinja").write_text("from the file")
    assert find_template(tmp_path, {"chat_template": named}) == "from the file"


@pytest.mark.parametrize("config", [{"chat_template": 3}, {"chat_template": [{"name": "rag", "template": "x"}]}])
def test_a_template_entry_that_cannot_be_used_is_refused(tmp_path: Path, config: dict[str, object]) -> None:
    with pytest.raises(TemplateSourceError):
        find_template(tmp_path, json.loads(json.dumps(config)))
