"""`telechat chat`: a conversation in the terminal, streamed.

Answers go to stdout, everything else to stderr: `telechat chat --prompt … > file` keeps just the answer.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from telechat.cli.adapter_options import adapter_settings, add_adapter_options, the_adapter
from telechat.cli.model_options import (
    add_loading_options,
    add_model_argument,
    add_sampling_options,
    load_llm,
    sampling_params,
)
from telechat.cli.model_source import model_of
from telechat.cli.parser import CommandParser
from telechat.errors import ContextLengthError, PromptError, TelechatError

if TYPE_CHECKING:
    from telechat.engine import LLM, SamplingParams

EXAMPLES = ('telechat chat demo --prompt "生抽与老抽的区别？"', "telechat chat demo --temperature 0")

COMMANDS = """/clear          forget the conversation
/system TEXT    set the system prompt and start anew; /system alone removes it
/help           this list
/exit           leave (also Ctrl-D)"""


def add_arguments(parser: CommandParser) -> None:
    """Declare the options of `telechat chat`."""
    add_model_argument(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="answer TEXT and exit")
    parser.add_argument("--system", metavar="TEXT", help="system prompt, for models that have one")
    add_adapter_options(parser)
    add_loading_options(parser)
    add_sampling_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answer one prompt, or converse until the user leaves."""
    if args.prompt is not None and not args.prompt.strip():
        raise PromptError("The prompt is empty.", hint="Write a question after --prompt.")
    adapter = the_adapter(args)
    llm = load_llm(model_of(args), args, **adapter_settings(args))
    conversation = Conversation(llm, sampling_params(llm, args), system=args.system, adapter=adapter)
    if args.prompt is not None:
        conversation.ask(args.prompt)
        return 0
    print(f"{llm.name}: type a message, or /help.", file=sys.stderr)
    while True:
        line = _read_line()
        if line is None:
            return 0
        if line.startswith("/"):
            if not conversation.obey(line):
                return 0
        elif line:
            _ask_and_survive(conversation, line)


def _read_line() -> str | None:
    """One line from the user, stripped; None at the end of input."""
    if sys.stdin.isatty():
        # Gives input() line editing and history; Windows has no such module and does it in the console.
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401
    try:
        sys.stderr.write("> ")
        sys.stderr.flush()
        return input().strip()
    except EOFError:
        print(file=sys.stderr)
        return None


def _ask_and_survive(conversation: Conversation, line: str) -> None:
    """Ask; a failed question or Ctrl-C during the answer ends the answer, not the session."""
    try:
        conversation.ask(line)
    except TelechatError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\n(stopped)", file=sys.stderr)


class Conversation:
    """The turns so far, and how to get the next one.

    Args:
        llm: the model.
        params: sampling settings of every answer.
        system: system prompt, or None.
        adapter: name of the adapter that answers, or None.
    """

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        *,
        system: str | None = None,
        adapter: str | None = None,
    ) -> None:
        self.llm = llm
        self.adapter = adapter
        self.params = params
        self.messages: list[dict[str, Any]] = []
        self.set_system(system)

    def set_system(self, text: str | None) -> None:
        """Start anew with this system prompt. PromptError when the model has none."""
        if text and not self.llm.tokenizer.supports_system:
            raise PromptError(
                f"{self.llm.name} takes no system prompt.", hint="Put the instruction into the question."
            )
        self.messages = [{"role": "system", "content": text}] if text else []

    def obey(self, line: str) -> bool:
        """Carry out a /command; False when it means to leave."""
        command, _, rest = line.partition(" ")
        if command in ("/exit", "/quit"):
            return False
        if command == "/clear":
            self.messages = [message for message in self.messages if message["role"] == "system"]
            print("(forgotten)", file=sys.stderr)
        elif command == "/system":
            try:
                self.set_system(rest.strip() or None)
                print("(system prompt set)" if self.messages else "(no system prompt)", file=sys.stderr)
            except PromptError as error:
                print(f"error: {error}", file=sys.stderr)
        elif command == "/help":
            print(COMMANDS, file=sys.stderr)
        else:
            print(f"error: Unknown command {command}. These are known:\n{COMMANDS}", file=sys.stderr)
        return True

    def ask(self, question: str) -> str:
        """Stream the answer to stdout and remember the turn; returns the answer.

        When the conversation has outgrown the context, its oldest turns are dropped, and that is said.
        """
        self.messages.append({"role": "user", "content": question})
        answered = False
        try:
            answer = self._stream()
            answered = True
        finally:
            if not answered:
                self.messages.pop()
        self.messages.append({"role": "assistant", "content": answer})
        return answer

    def _stream(self) -> str:
        while True:
            pieces = []
            try:
                for delta in self.llm.chat(self.messages, self.params, adapter=self.adapter, stream=True):
                    pieces.append(delta.text)
                    sys.stdout.write(delta.text)
                    sys.stdout.flush()
            except ContextLengthError:
                if pieces or not self._forget_oldest_turn():
                    raise
                continue
            sys.stdout.write("\n")
            sys.stdout.flush()
            return "".join(pieces)

    def _forget_oldest_turn(self) -> bool:
        """Drop the first question and its answer; False when only the current question is left."""
        start = 1 if self.messages[0]["role"] == "system" else 0
        if len(self.messages) - start < 3:
            return False
        del self.messages[start : start + 2]
        print("(the conversation no longer fits; its oldest turn was dropped)", file=sys.stderr)
        return True
