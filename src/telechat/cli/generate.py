"""`telechat generate`: answers to a file of prompts, resumably, or to one text."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from telechat.cli.adapter_options import adapter_settings, add_adapter_options, the_adapter
from telechat.cli.answer_file import ANSWER_KEY, PROMPT_KEY, AnswerFile, Row, read_prompts
from telechat.cli.batch import run_batch
from telechat.cli.model_options import (
    add_loading_options,
    add_model_argument,
    add_sampling_options,
    load_llm,
    sampling_params,
)
from telechat.cli.model_source import model_of
from telechat.cli.parser import CommandParser, positive_int
from telechat.cli.progress import progress_bar
from telechat.errors import ContextLengthError, PromptError, UsageError

if TYPE_CHECKING:
    from telechat.engine import LLM, SamplingParams
    from telechat.engine.outputs import Completion, Kept

EXAMPLES = (
    'telechat generate demo --input-text "鸡兔同笼，头35，脚94，各有几只？"',
    'telechat generate demo --raw --input-text "生抽" --max-new-tokens 16',
)


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat generate`."""
    add_model_argument(parser)
    group = parser.add_argument_group("input and output")
    source = group.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input-file",
        type=Path,
        metavar="FILE",
        help='.jsonl with rows {"input": "…"}, or an OpenAI batch file',
    )
    source.add_argument("--input-text", metavar="TEXT", help="one prompt; the answer goes to stdout")
    group.add_argument(
        "--output", type=Path, metavar="FILE", help=".jsonl of answers; an existing one is continued"
    )
    group.add_argument("--system", metavar="TEXT", help="system prompt, for models that have one")
    parser.add_boolean("--raw", help="continue the text as it is, without the chat format")
    parser.add_boolean("--parse-special", help="with --raw: read names of control tokens as these tokens")
    group.add_argument(
        "--max-input-length", type=positive_int, metavar="N", help="refuse longer prompts, in tokens"
    )
    group.add_argument("--max-batch-size", type=positive_int, metavar="N", help="prompts computed at once")
    for name, what in (("logits", "the model's raw output"), ("scores", "what was sampled from")):
        group.add_argument(
            f"--return-{name}",
            type=_keep,
            metavar="all|top-N",
            help=f"keep {what} of each step (needs --output)",
        )
    add_adapter_options(parser)
    add_loading_options(parser)
    add_sampling_options(parser)


def _keep(text: str) -> Literal["all"] | int:
    """An argparse type: "all", or N for "top-N"."""
    if text == "all":
        return "all"
    match = re.fullmatch(r"top-([1-9]\d*)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither all nor top-N such as top-5")
    return int(match[1])


def run(args: argparse.Namespace) -> int:
    """Check the input, load the model, answer what is not answered yet."""
    from telechat.serve.batch_file import is_batch_file

    check_combination(args)
    if args.input_file is not None and is_batch_file(args.input_file):
        return run_batch(args)
    rows = [{PROMPT_KEY: args.input_text}] if args.input_file is None else read_prompts(args.input_file)
    if not rows[0][PROMPT_KEY].strip():
        raise PromptError("The prompt is empty.", hint="Write a text after --input-text.")
    settings = {} if args.max_batch_size is None else {"max_batch_size": args.max_batch_size}
    adapter = the_adapter(args)
    llm = load_llm(model_of(args), args, **settings, **adapter_settings(args))
    params = sampling_params(llm, args)
    prompts = [prompt_ids(llm, row[PROMPT_KEY], args) for row in rows]
    check_lengths(prompts, llm, params, args)
    if args.output is None:
        print(llm.generate(prompts[0], params, adapter=adapter)[0].text)
        return 0
    with AnswerFile(args.output, rows) as output:
        if output.num_done:
            print(f"{output.num_done} of {len(rows)} rows are answered already.", file=sys.stderr)
        answer_rows(llm, rows, prompts, params, output, args)
    print(args.output)
    return 0


def check_combination(args: argparse.Namespace) -> None:
    """Refuse options that make no sense together."""
    if args.parse_special and not args.raw:
        raise UsageError(
            "--parse-special goes with --raw.", hint="In a conversation, text is always only text."
        )
    if args.raw and args.system is not None:
        raise UsageError("--raw has no system prompt.", hint="Write it into the text, or leave out --raw.")
    if args.output is None and args.input_file is not None:
        raise UsageError("--input-file needs --output.", hint="Name the .jsonl file for the answers.")
    if args.output is None and (args.return_logits or args.return_scores):
        raise UsageError("--return-logits and --return-scores need --output.")
    same = args.output is not None and args.input_file is not None
    if same and args.output.resolve() == args.input_file.resolve():
        raise UsageError(f"--output is the input file {args.input_file}.", hint="Name another file.")
    if args.output is not None and not args.output.parent.is_dir():
        raise UsageError(
            f"The folder {args.output.parent} for --output does not exist.", hint="Make it, or correct it."
        )


def prompt_ids(llm: LLM, text: str, args: argparse.Namespace) -> list[int]:
    """A prompt as token ids: plain text, or a user's question in the model's chat format."""
    if args.raw:
        return llm.tokenizer.encode(text, parse_special=args.parse_special)
    if args.system is not None and not llm.tokenizer.supports_system:
        raise PromptError(
            f"{llm.name} takes no system prompt.", hint="Put the instruction into the question."
        )
    messages = [{"role": "user", "content": text}]
    if args.system is not None:
        messages.insert(0, {"role": "system", "content": args.system})
    return llm.tokenizer.apply_chat_template(messages)


def check_lengths(
    prompts: list[list[int]], llm: LLM, params: SamplingParams, args: argparse.Namespace
) -> None:
    """Refuse a prompt that is too long before anything is computed, naming its row in a file."""
    limit, hint = llm.max_model_len - 1, "Shorten it, or raise --max-model-len."
    if params.max_tokens is None and params.max_total_tokens is not None and params.max_total_tokens <= limit:
        limit, hint = (
            params.max_total_tokens - 1,
            "That is the model's max_length; --max-new-tokens beats it.",
        )
    asked = limit if args.max_input_length is None else min(args.max_input_length, limit)
    for number, ids in enumerate(prompts, 1):
        place = "" if args.input_file is None else f"It is row {number}. "
        if len(ids) > limit:
            raise ContextLengthError(len(ids), limit, hint=f"{place}{hint}")
        if len(ids) > asked:
            raise PromptError(
                f"The prompt has {len(ids)} tokens; --max-input-length allows {asked}.",
                hint=f"{place}Shorten it, or raise --max-input-length.",
            )


def answer_rows(
    llm: LLM,
    rows: list[Row],
    prompts: list[list[int]],
    params: SamplingParams,
    output: AnswerFile,
    args: argparse.Namespace,
) -> None:
    """Answer the rows behind those already done; each is written once it and all before it are done."""
    first = output.num_done
    answers = llm.generate_each(
        prompts[first:],
        params,
        return_logits=args.return_logits,
        return_scores=args.return_scores,
        adapter=the_adapter(args),
    )
    early: dict[int, Row] = {}
    with progress_bar(len(rows), first) as advance:
        for number, answer in answers:
            index = first + number
            early[index] = answer_row(rows[index], answer.outputs[0], index, output.path)
            ready: list[Row] = []
            while output.num_done + len(ready) in early:
                ready.append(early.pop(output.num_done + len(ready)))
            if ready:
                output.write(ready)
            advance(1)


def answer_row(row: Row, completion: Completion, index: int, path: Path) -> Row:
    """The input row with its answer; full logits and scores go to a file beside, which the row names."""
    answered = {**row, ANSWER_KEY: completion.text, "finish_reason": completion.finish_reason}
    tensors: dict[str, Any] = {}
    for name, kept in (("logits", completion.logits), ("scores", completion.scores)):
        if isinstance(kept, list):
            answered[name] = top_values(kept)
        elif kept is not None:
            tensors[name] = kept
    if tensors:
        from safetensors.torch import save_file

        place = path.with_name(f"{path.stem}.logits") / f"{index:06d}.safetensors"
        place.parent.mkdir(exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, str(place))
        answered["logits_file"] = f"{place.parent.name}/{place.name}"
    return answered


def top_values(kept: Kept) -> list[list[tuple[int, float]]]:
    """Per step, [token id, value] of the highest, best first: JSON has no integer keys."""
    assert isinstance(kept, list)
    return [list(step.items()) for step in kept]
