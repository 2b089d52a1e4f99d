"""Checks of the model list and of whole chat answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from telechat.conformance.api import QUESTION, Api
from telechat.conformance.check import Check, SkippedError, expect, pick, shown

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter")


def models_list(api: Api) -> None:
    answer = api.json(api.get("/v1/models"))
    expect(pick(answer, "object") == "list", f"object is {shown(answer['object'])}, not list")
    data = pick(answer, "data")
    expect(isinstance(data, list) and bool(data), "data lists no model")
    for number, entry in enumerate(data):
        for name, kind in (("id", str), ("object", str), ("created", int), ("owned_by", str)):
            value = pick(answer, "data", number, name)
            expect(isinstance(value, kind), f"data.{number}.{name} is {shown(value)}")
        expect(entry["object"] == "model", f"data.{number}.object is {shown(entry['object'])}")


def models_retrieve(api: Api) -> None:
    answer = api.json(api.get(f"/v1/models/{quote(api.model, safe='/')}"))
    expect(pick(answer, "id") == api.model, f"id is {shown(answer['id'])}, asked for {api.model}")


def chat_shape(api: Api) -> None:
    answer = api.plain
    expect(pick(answer, "object") == "chat.completion", f"object is {shown(answer['object'])}")
    expect(isinstance(pick(answer, "id"), str) and bool(answer["id"]), "id is no text")
    expect(isinstance(pick(answer, "created"), int), f"created is {shown(answer['created'])}, not seconds")
    choice = pick(answer, "choices", 0)
    expect(pick(choice, "index") == 0, f"index is {shown(choice['index'])}")
    message = pick(choice, "message")
    expect(pick(message, "role") == "assistant", f"role is {shown(message['role'])}")
    expect(isinstance(pick(message, "content"), str), f"content is {shown(message['content'])}, not text")


def chat_finish_reason(api: Api) -> None:
    reason = pick(api.plain, "choices", 0, "finish_reason")
    expect(reason in FINISH_REASONS, f"finish_reason is {shown(reason)}")


def chat_usage(api: Api) -> None:
    usage = pick(api.plain, "usage")
    check_usage(usage)


def check_usage(usage: Any) -> None:
    """Three counts that add up."""
    counts = [pick(usage, name) for name in ("prompt_tokens", "completion_tokens", "total_tokens")]
    expect(all(type(count) is int and count >= 0 for count in counts), f"usage is {shown(usage)}")
    expect(counts[0] > 0, "usage counts no prompt tokens")
    expect(counts[0] + counts[1] == counts[2], f"usage does not add up: {shown(usage)}")


def chat_model(api: Api) -> None:
    name = pick(api.plain, "model")
    expect(name == api.model, f"model is {shown(name)}, asked for {api.model}")


def chat_not_streamed(api: Api) -> None:
    for fields in ({}, {"stream": False}, {"stream": None}):
        answer = api.post("/v1/chat/completions", api.body(**fields))
        expect(answer.status_code == 200, f"HTTP {answer.status_code} with {fields}")
        kind = answer.headers.get("content-type", "")
        expect(kind.startswith("application/json"), f"Content-Type is {kind!r} with {fields}")


def chat_new_ids(api: Api) -> None:
    expect(pick(api.plain, "id") != pick(api.chat(), "id"), "two answers have the same id")


def chat_content_parts(api: Api) -> None:
    parts = [{"type": "text", "text": QUESTION}]
    answer = api.chat(messages=[{"role": "user", "content": parts}])
    same = pick(answer, "usage", "prompt_tokens") == pick(api.plain, "usage", "prompt_tokens")
    expect(same, "a list of one text part is not read as that text")


def chat_unknown_fields(api: Api) -> None:
    api.chat(store=False, metadata={"source": "check"}, user="someone", x_not_a_field=1)


def chat_null_fields(api: Api) -> None:
    names = ("stop", "tools", "tool_choice", "logit_bias", "seed", "top_p", "response_format", "n")
    api.chat(**dict.fromkeys((*names, "presence_penalty", "stream_options", "max_completion_tokens")))


def chat_max_tokens(api: Api) -> None:
    _one_token(api.chat(max_tokens=1))


def chat_max_completion_tokens(api: Api) -> None:
    _one_token(api.chat(max_tokens=..., max_completion_tokens=1))


def _one_token(answer: Any) -> None:
    count, reason = pick(answer, "usage", "completion_tokens"), pick(answer, "choices", 0, "finish_reason")
    expect(count <= 1, f"1 token was asked for and {count} came")
    expect(reason in ("length", "stop"), f"finish_reason is {shown(reason)}")


def chat_length_reason(api: Api) -> None:
    answer = api.plain
    if pick(answer, "usage", "completion_tokens") < 3:
        raise SkippedError("the model's answer is too short to cut it")
    reason = pick(api.chat(max_tokens=2), "choices", 0, "finish_reason")
    expect(reason == "length", f"an answer cut by max_tokens has finish_reason {shown(reason)}")


def chat_stop(api: Api) -> None:
    text = str(pick(api.plain, "choices", 0, "message", "content"))
    middle = len(text) // 2
    stop = text[middle : middle + 3]
    # Leading and trailing space is a matter of taste.
    expected = text.partition(stop)[0]
    if not stop.strip() or not expected.strip():
        raise SkippedError("the model's answer is too short to stop in it")
    for given in (stop, [stop, "never in any answer"]):
        answer = api.chat(stop=given)
        found = pick(answer, "choices", 0, "message", "content")
        expect(stop not in found, f"the answer holds the stop text {stop!r}")
        expect(found == expected, f"stopped at {stop!r}: {shown(found)} instead of {shown(expected)}")
        reason = pick(answer, "choices", 0, "finish_reason")
        expect(reason == "stop", f"finish_reason is {shown(reason)}")


def chat_n(api: Api) -> None:
    answer = api.chat(n=2, temperature=1)
    choices = pick(answer, "choices")
    indices = sorted(pick(answer, "choices", number, "index") for number in range(len(choices)))
    expect(indices == [0, 1], f"n=2 gives choices with the indices {indices}")


def chat_seed(api: Api) -> None:
    texts = {pick(api.chat(seed=7, temperature=1), "choices", 0, "message", "content") for _ in range(2)}
    expect(len(texts) == 1, f"the same seed gives two answers: {shown(sorted(texts))}")


def chat_greedy(api: Api) -> None:
    again = pick(api.chat(), "choices", 0, "message", "content")
    expect(again == pick(api.plain, "choices", 0, "message", "content"), "temperature 0 gives two answers")


def chat_logprobs(api: Api) -> None:
    answer = api.chat(logprobs=True, top_logprobs=2)
    entries = pick(answer, "choices", 0, "logprobs", "content")
    expect(isinstance(entries, list) and bool(entries), "logprobs.content is empty")
    for entry in entries:
        expect(isinstance(pick(entry, "token"), str), "a token is no text")
        logprob = pick(entry, "logprob")
        expect(isinstance(logprob, int | float) and logprob <= 0, f"a logprob is {shown(logprob)}")
        expect("bytes" in entry, "an entry has no bytes")
        expect(len(pick(entry, "top_logprobs")) == 2, "top_logprobs=2 gives another number")
    text = pick(answer, "choices", 0, "message", "content")
    expect(text == pick(api.plain, "choices", 0, "message", "content"), "logprobs change the answer")


def chat_developer_role(api: Api) -> None:
    question = {"role": "user", "content": QUESTION}
    system = [{"role": "system", "content": "Be brief."}, question]
    if api.post("/v1/chat/completions", api.body(messages=system)).status_code == 400:
        raise SkippedError("the model takes no system message")
    counts = [
        pick(api.chat(messages=[{"role": role, "content": "Be brief."}, question]), "usage", "prompt_tokens")
        for role in ("system", "developer")
    ]
    expect(counts[0] == counts[1], "developer is not read as system")


def chat_history(api: Api) -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": QUESTION},
    ]
    answer = api.chat(messages=messages)
    longer = pick(answer, "usage", "prompt_tokens") > pick(api.plain, "usage", "prompt_tokens")
    expect(longer, "earlier messages are not part of the prompt")


def parallel_requests(api: Api) -> None:
    questions = [QUESTION + " Please." * number for number in range(4)]

    def num_prompt_tokens(question: str) -> Any:
        return pick(api.chat(messages=[{"role": "user", "content": question}]), "usage", "prompt_tokens")

    alone = [num_prompt_tokens(question) for question in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(num_prompt_tokens, questions))
    expect(together == alone, f"requests at the same time are mixed up: {together} instead of {alone}")


def disconnect(api: Api) -> None:
    for _ in range(3):
        api.open_and_leave()
    answer = api.chat()
    expect(bool(pick(answer, "choices")), "no answer after clients that went away")


CHECKS = (
    Check("models-list", "Open WebUI, Dify", "the list of models stays empty", models_list),
    Check("models-retrieve", "openai-python, LangChain", "models.retrieve fails", models_retrieve),
    Check("chat-shape", "all clients", "answers cannot be read", chat_shape),
    Check("chat-finish-reason", "LangChain, gateways", "cut answers look whole", chat_finish_reason),
    Check("chat-usage", "gateways, Dify", "tokens cannot be billed", chat_usage),
    Check("chat-model", "gateways", "the bill names another model", chat_model),
    Check("chat-not-streamed", "all clients", "chunks arrive where one object is read", chat_not_streamed),
    Check("chat-new-ids", "gateways", "two answers are taken for one", chat_new_ids),
    Check("chat-content-parts", "LangChain, Open WebUI", "messages of parts are refused", chat_content_parts),
    Check("chat-unknown-fields", "LangChain, Dify", "newer clients are refused", chat_unknown_fields),
    Check("chat-null-fields", "LlamaIndex, LangChain", "fields left open are refused", chat_null_fields),
    Check("chat-max-tokens", "all clients", "answers are longer than paid for", chat_max_tokens),
    Check(
        "chat-max-completion-tokens",
        "openai-python, LangChain",
        "the newer name of the limit is not obeyed",
        chat_max_completion_tokens,
    ),
    Check("chat-length-reason", "LangChain, Dify", "cut answers look whole", chat_length_reason),
    Check("chat-stop", "LangChain agents", "the model goes on and invents observations", chat_stop),
    Check("chat-n", "openai-python", "fewer answers than asked for", chat_n),
    Check("chat-seed", "openai-python", "experiments cannot be repeated", chat_seed),
    Check("chat-greedy", "LlamaIndex, tests", "temperature 0 does not repeat", chat_greedy),
    Check("chat-logprobs", "openai-python, LangChain", "logprobs cannot be read", chat_logprobs),
    Check(
        "chat-developer-role", "openai-python", "newer clients' system text is refused", chat_developer_role
    ),
    Check("chat-history", "all clients", "the model forgets the conversation", chat_history),
    Check("parallel-requests", "gateways, Open WebUI", "users disturb one another", parallel_requests),
    Check("disconnect", "Open WebUI", "a stopped answer stops the server", disconnect),
)
