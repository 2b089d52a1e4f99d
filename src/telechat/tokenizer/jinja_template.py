"""The TeleChat2 chat template as text: the default system prompt, the tool section, and a Jinja version.

The Jinja version is for other programs (transformers, llama.cpp, vLLM): it goes into the
`tokenizer_config.json` we write. Our own conversations never pass through it; they are built from ids, in the
layout of `chat_formats`.
"""

from __future__ import annotations

DEFAULT_SYSTEM = (
    "你是中国电信星辰语义大模型，英文名是TeleChat，你是由中电信人工智能科技有限公司"
    "和中国电信人工智能研究院（TeleAI）研发的人工智能助手。"
)

# Around the tools, one JSON line each. The half-width comma before 以下是 is part of the trained text.
TOOLS_HEAD = (
    "\n# 可用工具\n你可以调用<tools></tools>标签中包含的一个或多个工具来辅助你回答问题,"
    "以下是可用工具详情：\n<tools>\n"
)
TOOLS_TAIL = (
    "</tools>\n\n# 调用方法\n你需要遵循工具的要求，使用json格式返回工具名称及参数，"
    "并用<tool_call></tool_call>包含。下方是一个调用模板：\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>\n\n'
)


def _quoted(text: str) -> str:
    """`text` as a Jinja string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


TELECHAT2_JINJA = f"""\
{{%- if messages[0].role == 'system' -%}}
  {{%- set system_text = messages[0].content -%}}
{{%- else -%}}
  {{%- set system_text = {_quoted(DEFAULT_SYSTEM)} -%}}
{{%- endif -%}}
{{{{- '<_system>' + system_text + '\\n' -}}}}
{{%- if tools -%}}
  {{{{- {_quoted(TOOLS_HEAD)} -}}}}
  {{%- for tool in tools -%}}
    {{{{- tool | tojson -}}}}{{{{- '\\n' -}}}}
  {{%- endfor -%}}
  {{{{- {_quoted(TOOLS_TAIL)} -}}}}
{{%- endif -%}}
{{%- for message in messages -%}}
  {{%- if message.role == 'user' -%}}
    {{{{- '<_user>' + message.content -}}}}
  {{%- elif message.role == 'assistant' or message.role == 'bot' -%}}
    {{{{- '<_bot>' -}}}}
    {{%- if message.content -%}}{{{{- message.content -}}}}{{%- endif -%}}
    {{%- for tool_call in message.tool_calls or [] -%}}
      {{%- set call = tool_call.function if tool_call.function is defined else tool_call -%}}
      {{%- if not loop.first -%}}{{{{- '\\n' -}}}}{{%- endif -%}}
      {{{{- '<tool_call>\\n{{"name": "' + call.name + '", "arguments": ' -}}}}
      {{%- if call.arguments is string -%}}
        {{{{- call.arguments -}}}}
      {{%- else -%}}
        {{{{- call.arguments | tojson -}}}}
      {{%- endif -%}}
      {{{{- '}}\\n</tool_call>' -}}}}
    {{%- endfor -%}}
    {{{{- '<_end>\\n' -}}}}
  {{%- elif message.role == 'tool' -%}}
    {{{{- '<_user>' if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' else '\\n' -}}}}
    {{{{- '<tool_response>\\n' + message.content + '\\n</tool_response>' -}}}}
  {{%- endif -%}}
{{%- endfor -%}}
{{%- if add_generation_prompt -%}}{{{{- '<_bot>' -}}}}{{%- endif -%}}
"""

_TURNS_JINJA = """\
{%- for message in messages -%}
  {%- if message.role == 'user' -%}
    {{- '<_user>' + message.content -}}
  {%- elif message.role == 'assistant' or message.role == 'bot' -%}
    {{- '<_bot>' + message.content + '<_end>' -}}
  {%- else -%}
    {{- raise_exception('This model has no messages of the role ' + message.role + '.') -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<_bot>' -}}{%- endif -%}
"""
_JINJA = {
    "telechat1": _TURNS_JINJA,
    "telechat2-115b": "{{- '<_start>' -}}\n" + _TURNS_JINJA,
    "telechat2": TELECHAT2_JINJA,
}
# In the template language of Ollama. Messages carry their role; the last one leaves the answer open.
_TURNS_OLLAMA = (
    '{{ range .Messages }}{{ if eq .Role "user" }}<_user>{{ .Content }}'
    '{{ else if eq .Role "assistant" }}<_bot>{{ .Content }}<_end>%s{{ end }}{{ end }}<_bot>'
)
_OLLAMA = {
    "telechat1": _TURNS_OLLAMA % "",
    "telechat2-115b": "<_start>" + _TURNS_OLLAMA % "",
    "telechat2": (
        "<_system>{{ if .System }}{{ .System }}{{ else }}"
        + DEFAULT_SYSTEM
        + "{{ end }}\n"
        + _TURNS_OLLAMA % "\n"
    ),
}


def jinja_of(chat_format: str) -> str:
    """The Jinja template of a chat format, for other programs."""
    return _JINJA[chat_format]


def ollama_template(chat_format: str) -> str:
    """The template of a chat format in Ollama's language; tools are left out."""
    return _OLLAMA[chat_format]
