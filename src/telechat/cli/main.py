"""Entry point of the `telechat` command: runs the verb, turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 used wrongly, 130 interrupted. It knows the table of verbs and nothing that
any of them does.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from telechat.cli.verbs import EXAMPLES, VERBS, Verb
from telechat.errors import TelechatError, UsageError
from telechat.registry import nearest

EXIT_INTERRUPTED = 130

_IN_TRAINING = "in training raise batch.micro_batches, or set recompute to full"
# What torch says -> what we say: failures of the machine rather than of the code, with their remedies.
MACHINE_FAILURES = {
    "out of memory": "Out of memory. Lower --max-batch-size or --max-model-len, or take --dtype bfloat16; "
    f"{_IN_TRAINING}",
    "can't allocate memory": "Out of memory. Lower --max-batch-size or --max-model-len, or free some memory; "
    f"{_IN_TRAINING}",
    "no kernel image": "torch was built for other devices. Compare telechat doctor with your driver",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    write_any_character()
    try:
        return dispatch(words)
    except TelechatError as error:
        if debug:
            raise
        hint = f" {error.hint}" if error.hint else ""
        print(" ".join(f"error: {error.message}{hint}{see_also(error.message)}".split()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print(file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`); what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except RuntimeError as error:
        failure = machine_failure(error)
        if failure is None or debug:
            raise
        print(f"error: {failure}.{see_also(failure)}", file=sys.stderr)
        return 1
    except OSError as error:
        # A file or folder named by the user that cannot be opened, made or written; a full disk.
        if debug:
            raise
        # Of two, the second is the name that the user knows: the first is a temporary file.
        place = error.filename2 or error.filename
        where = f"{place}: " if place is not None else ""
        print(f"error: {where}{error.strerror or error}.", file=sys.stderr)
        return 1


def machine_failure(error: RuntimeError) -> str | None:
    """Our words for an error of torch that is the machine's; None for any other, which stays a traceback."""
    text = str(error).lower()
    return next((ours for theirs, ours in MACHINE_FAILURES.items() if theirs in text), None)


def see_also(message: str) -> str:
    """Where the documentation explains a message, as the end of a line; empty where it does not."""
    from telechat.cli.troubleshooting import link_for

    link = link_for(message)
    return "" if link is None else f" See {link}."


def write_any_character() -> None:
    """Let a console that cannot show a character show a stand-in, where Python would raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def dispatch(words: list[str]) -> int:
    """Run the verb that `words` begins with; without one, print the overview."""
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        from telechat import __version__

        print(f"telechat {__version__}")
        return 0
    verb = find_verb(words)
    if verb is None:
        print(overview(group=words[0]))
        return 0
    # Imported here: the overview needs no argparse.
    from telechat.cli.parser import CommandParser
    from telechat.logs import setup_logging

    module = import_module(verb.module)
    parser = CommandParser(f"telechat {' '.join(verb.words)}", summary=verb.summary, examples=module.EXAMPLES)
    module.add_arguments(parser)
    args = parser.parse(words[len(verb.words) :])
    setup_logging(args.log_level or getattr(module, "LOG_LEVEL", "warning"))
    return int(module.run(args))


def find_verb(words: list[str]) -> Verb | None:
    """The verb at the start of `words`; None for a group asked for its overview (`telechat data --help`).

    Raises:
        UsageError: no such verb; names the nearest.
    """
    groups = {verb.words[0] for verb in VERBS if len(verb.words) > 1}
    for verb in VERBS:
        if tuple(words[: len(verb.words)]) == verb.words:
            return verb
    first = words[0]
    if first in groups:
        second = words[1] if len(words) > 1 else "--help"
        if second in ("-h", "--help"):
            return None
        _refuse(second, [verb.words[1] for verb in VERBS if verb.words[0] == first], f"telechat {first}")
    if first.startswith("-"):
        raise UsageError(
            f"Unknown option {first} for telechat.", hint="Give the verb first; see telechat --help."
        )
    _refuse(first, sorted({verb.words[0] for verb in VERBS}), "telechat")


def _refuse(word: str, known: list[str], command: str) -> NoReturn:
    guess = nearest(word, known)
    hint = f"Did you mean {guess}?" if guess else f"Choose one of: {', '.join(known)}."
    raise UsageError(f"{command} has no verb {word!r}.", hint=hint)


def overview(group: str | None = None) -> str:
    """The help of `telechat`, or of a group of verbs such as `telechat data`."""
    shown = [verb for verb in VERBS if group is None or verb.words[0] == group]
    command = "telechat" if group is None else f"telechat {group}"
    width = max(len(" ".join(verb.words)) for verb in shown)
    lines = [f"usage: {command} VERB [options]", ""]
    if group is None:
        lines += ["Run, serve and train the TeleChat language models.", ""]
    lines += ["verbs:"]
    lines += [f"  {' '.join(verb.words):<{width}}  {verb.summary}" for verb in shown]
    examples = (
        EXAMPLES if group is None else tuple(import_module(verb.module).EXAMPLES[0] for verb in shown[:2])
    )
    lines += [
        "",
        "`telechat VERB --help` lists a verb's options. MODEL is a folder, a hub id such as",
        "TeleAI/TeleChat2-7B, or `demo`, the small model that comes with this package.",
        "",
        "examples:",
    ]
    lines += [f"  {example}" for example in examples]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
