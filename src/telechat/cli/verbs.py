"""The table of verbs: what can be typed, where it is implemented, and one line about it.

It is data only, so that `telechat --help` is printed without importing any verb.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Verb:
    """One command.

    Attributes:
        words: what is typed after `telechat`: ("chat",) or ("tokenizer", "train").
        module: the module with `add_arguments(parser)`, `run(args) -> int` and `EXAMPLES`.
        summary: one line for the overview.
    """

    words: tuple[str, ...]
    module: str
    summary: str


VERBS: tuple[Verb, ...] = (
    Verb(words=("chat",), module="telechat.cli.chat", summary="talk to a model in the terminal"),
    Verb(words=("generate",), module="telechat.cli.generate", summary="answer a file of prompts, resumably"),
    Verb(words=("serve",), module="telechat.cli.serve", summary="start the HTTP API"),
    Verb(words=("deploy",), module="telechat.cli.deploy", summary="start the HTTP API and the chat page"),
    Verb(
        words=("api-check",),
        module="telechat.cli.api_check",
        summary="check that a server behaves as OpenAI's clients expect",
    ),
    Verb(
        words=("doctor",),
        module="telechat.cli.doctor",
        summary="show devices and kernels, check a model folder",
    ),
    Verb(
        words=("bundle", "make"),
        module="telechat.cli.bundle_make",
        summary="make a folder that installs telechat without a network",
    ),
    Verb(
        words=("bundle", "verify"),
        module="telechat.cli.bundle_verify",
        summary="check that a bundle's files are as they were made",
    ),
    Verb(
        words=("plan",),
        module="telechat.cli.plan",
        summary="how much memory a run needs, whether it fits, and what does",
    ),
    Verb(words=("train",), module="telechat.cli.train", summary="train a model from a recipe"),
    Verb(
        words=("launch",),
        module="telechat.cli.launch",
        summary="run a verb in several processes, on one machine or many",
    ),
    Verb(
        words=("quantize", "run"),
        module="telechat.cli.quantize_run",
        summary="make a model folder with 8-bit or 4-bit weights",
    ),
    Verb(
        words=("quantize", "compress"),
        module="telechat.cli.quantize_compress",
        summary="split a sparse int8 folder by rank and compress it",
    ),
    Verb(
        words=("quantize", "report"),
        module="telechat.cli.quantize_report",
        summary="show what a quantised model has lost",
    ),
    Verb(
        words=("checkpoint", "convert"),
        module="telechat.cli.checkpoint_convert",
        summary="write a checkpoint in another format",
    ),
    Verb(
        words=("checkpoint", "split"),
        module="telechat.cli.checkpoint_split",
        summary="cut a MindSpore checkpoint into the slices of ranks",
    ),
    Verb(
        words=("checkpoint", "merge"),
        module="telechat.cli.checkpoint_merge",
        summary="join the slices of ranks into one checkpoint",
    ),
    Verb(
        words=("checkpoint", "reshard"),
        module="telechat.cli.checkpoint_reshard",
        summary="cut the slices of ranks anew for other ranks",
    ),
    Verb(
        words=("checkpoint", "strategy"),
        module="telechat.cli.checkpoint_strategy",
        summary="write the strategy files of a layout",
    ),
    Verb(
        words=("checkpoint", "merge-lora"),
        module="telechat.cli.checkpoint_merge_lora",
        summary="merge LoRA matrices into the weights",
    ),
    Verb(
        words=("checkpoint", "extract-lora"),
        module="telechat.cli.checkpoint_extract_lora",
        summary="take LoRA matrices out as a PEFT adapter",
    ),
    Verb(
        words=("checkpoint", "show"),
        module="telechat.cli.checkpoint_show",
        summary="show what a checkpoint holds",
    ),
    Verb(
        words=("checkpoint", "verify"),
        module="telechat.cli.checkpoint_verify",
        summary="compare two checkpoints and write a certificate",
    ),
    Verb(
        words=("export", "llama"),
        module="telechat.cli.export_llama",
        summary="prepare a model for transformers",
    ),
    Verb(
        words=("export", "gguf"), module="telechat.cli.export_gguf", summary="prepare a model for llama.cpp"
    ),
    Verb(
        words=("export", "ollama"), module="telechat.cli.export_ollama", summary="prepare a model for Ollama"
    ),
    Verb(words=("export", "vllm"), module="telechat.cli.export_vllm", summary="prepare a model for vLLM"),
    Verb(
        words=("export", "mindie"), module="telechat.cli.export_mindie", summary="prepare a model for MindIE"
    ),
    Verb(
        words=("data", "preprocess"),
        module="telechat.cli.data_preprocess",
        summary="pack training rows as MindFormers does",
    ),
    Verb(
        words=("data", "demo"),
        module="telechat.cli.data_demo",
        summary="write the demo model's training rows",
    ),
    Verb(
        words=("data", "inspect"),
        module="telechat.cli.data_inspect",
        summary="show tokens, loss mask and accounts of a training file",
    ),
    Verb(words=("eval", "demo"), module="telechat.cli.eval_demo", summary="score a model on the demo tasks"),
    Verb(
        words=("tokenizer", "train"),
        module="telechat.cli.tokenizer_train",
        summary="train a byte-level BPE vocabulary",
    ),
    Verb(
        words=("tokenizer", "show"),
        module="telechat.cli.tokenizer_show",
        summary="show a vocabulary and its special tokens",
    ),
    Verb(
        words=("tokenizer", "encode"),
        module="telechat.cli.tokenizer_encode",
        summary="turn text into token ids",
    ),
    Verb(
        words=("template", "diff"),
        module="telechat.cli.template_diff",
        summary="find the first token at which two chat formats differ",
    ),
)

EXAMPLES = ('telechat chat demo --prompt "生抽与老抽的区别？"', "telechat deploy")
