"""How to use the telechat toolkit: which command starts, serves, deploys, checks, loads, tunes or converts.

Every answer carries the literal command. Commands that arrive with later versions of the toolkit are given
together with the page that says whether they are there. Knows nothing of the commands themselves.
"""

from __future__ import annotations

from telechat.data.demo.intents import Intent, IntentTask, Required, framed
from telechat.data.demo.task import Task
from telechat.data.demo.wording import Language

_FRAMES_ZH = (
    "怎么{}？", "如何{}？", "怎样{}？", "我想{}，该怎么做？", "我想{}，用什么命令？", "{}用哪个命令？",
    "{}的命令是什么？", "怎样才能{}？", "告诉我怎么{}。", "{}该怎么操作？",
)  # fmt: skip
_FRAMES_EN = (
    "How do I {}?", "How can I {}?", "How to {}?", "I want to {}. What should I do?",
    "What is the command to {}?", "Which command do I use to {}?", "Tell me how to {}.",
    "What do I type to {}?", "Show me how to {}.", "Can you tell me how to {}?",
)  # fmt: skip
_STATUS_ZH = "docs/status.md 写明你的版本是否支持。"
_STATUS_EN = "See docs/status.md for whether your version has it."

# name: (answer, required literals, cores for the frames)
_Entry = tuple[str, tuple[str, ...], tuple[str, ...]]
_ZH: dict[str, _Entry] = {
    "chat": (
        "在终端运行 `telechat chat` 就能开始聊天。",
        ("telechat chat",), (
        "开始聊天", "在终端聊天", "启动聊天", "和模型聊天", "在命令行聊天", "在终端和模型对话", "开始对话",
        "启动对话", "在命令行和模型对话", "打开终端聊天", "在终端开始聊天", "在命令行启动对话", "跟模型对话",
        "跟模型聊天", "打开终端对话",
    )),
    "serve": (
        "运行 `telechat serve demo` 就能启动 API 服务，端口是 8070。",
        ("telechat serve demo", "8070"), (
        "启动 API 服务", "启动服务", "运行服务", "开启服务", "启动接口服务", "运行 API 服务",
        "开启 API 服务", "启动模型服务", "运行模型服务", "只启动 API", "提供 API 服务", "提供接口服务",
        "开启 API 接口", "运行接口服务", "只启动接口",
    )),
    "deploy": (
        "运行 `python deploy.py`，它会装好环境，并打开 API 和聊天网页。",
        ("python deploy.py", "API"), (
        "一键部署", "部署模型", "部署", "部署 TeleChat", "完成部署", "一键部署模型", "部署整个工具包",
        "一键部署工具包", "在本机部署", "在本机部署模型", "在电脑上部署", "在电脑上部署模型", "快速部署",
        "快速部署模型", "快速完成部署",
    )),
    "generate": (
        "运行 `telechat generate demo --input-file in.jsonl --output out.jsonl` 批量生成。",
        (
        "telechat generate", "--input-file", "--output"), (
        "批量生成", "批量生成回答", "从文件批量生成", "处理一个文件里的问题", "批量处理问题", "批量处理文件",
        "批量回答问题", "批量回答文件里的问题", "从文件生成回答", "对文件里的问题批量回答", "批量推理",
        "从文件批量推理", "对一个文件批量推理", "批量处理文件里的问题", "一次回答很多问题",
        "一次处理很多问题",
    )),
    "doctor": (
        "运行 `telechat doctor`，它会检查设备、内存和缺少的组件。",
        ("telechat doctor",), (
        "检查环境", "检查安装", "诊断问题", "诊断环境", "检查设备", "查看设备", "检查安装是否正常",
        "检查环境是否正常", "诊断安装问题", "查看设备和内存", "检查设备和内存", "排查问题", "排查环境问题",
        "排查安装问题", "检查模型文件夹", "检查模型文件夹是否正常",
    )),
    "python": (
        "在 Python 里写 `telechat.load_model(\"demo\")`，对话用 `telechat.LLM(\"demo\")`。",
        (
        "telechat.load_model", "telechat.LLM"), (
        "在 Python 里加载模型", "用 Python 加载模型", "在 Python 里使用模型", "用 Python 调用模型",
        "在 Python 里调用模型", "在 Python 代码里加载模型", "用 Python 代码加载模型",
        "用 Python 代码调用模型", "在代码里加载模型", "在代码里使用模型", "用代码加载模型",
        "在 Python 程序里加载模型", "在 Python 程序里使用模型", "在程序里调用模型", "用 Python 程序加载模型",
    )),
    "tune": (
        f"用 `telechat train --config recipes/sft.yaml` 微调。{_STATUS_ZH}",
        ("telechat train", "docs/status.md"), (
        "微调模型", "微调", "训练模型", "训练自己的模型", "微调自己的模型", "用自己的数据微调",
        "用自己的数据训练", "用自己的数据微调模型", "用自己的数据训练模型", "开始微调", "开始训练",
        "开始微调模型", "做微调", "对模型做微调", "做模型训练",
    )),
    "quantize": (
        f"用 `telechat quantize run` 量化模型。{_STATUS_ZH}",
        ("telechat quantize run", "docs/status.md"), (
        "量化模型", "做量化", "量化", "把模型量化", "把模型量化成 int4", "把模型量化成 int8", "量化成 int8",
        "量化成 int4", "做 int4 量化", "做 int8 量化", "对模型做量化", "对模型做 int8 量化",
        "把模型压缩成 int4", "把模型压缩成 int8", "得到量化模型",
    )),
    "convert": (
        f"用 `telechat checkpoint convert` 转换权重格式。{_STATUS_ZH}",
        (
        "telechat checkpoint convert", "docs/status.md"), (
        "转换权重格式", "转换模型格式", "转换权重", "转换检查点", "转换格式", "把权重转换成 GGUF",
        "把模型转换成 GGUF", "把模型转成 Llama 格式", "把权重转成 Llama 格式", "把权重转换成其他格式",
        "把模型转换成其他格式", "转换成其他格式", "转成 GGUF 格式", "转换检查点格式", "把检查点转换成 GGUF",
    )),
    "docs": (
        "API 文档的地址是 http://127.0.0.1:8070/docs 。",
        ("8070/docs",), (
        "查看 API 文档", "打开 API 文档", "找到 API 文档", "看 API 文档", "查看接口文档", "打开接口文档",
        "找到接口文档", "看接口文档", "打开 API 文档网址", "查看 API 说明", "找到 API 说明", "打开接口说明",
        "看接口说明", "查看接口说明文档", "阅读 API 文档", "阅读接口文档",
    )),
    "page": (
        "聊天网页的地址是 http://127.0.0.1:8501 ，先运行 `python deploy.py`。",
        ("8501",), (
        "打开聊天网页", "打开网页", "在网页里聊天", "打开聊天页面", "打开页面", "使用聊天网页",
        "使用网页聊天", "访问聊天网页", "访问网页", "访问聊天页面", "在浏览器里聊天", "用浏览器聊天",
        "在浏览器里打开聊天页面", "在浏览器里访问网页", "用网页聊天",
    )),
    "test": (
        "运行 `make test`，它会装好环境并跑完所有测试。",
        ("make test",), (
        "运行测试", "跑测试", "运行所有测试", "跑所有测试", "做测试", "测试这个项目", "测试项目", "跑完测试",
        "运行项目的测试", "跑项目的测试", "跑单元测试", "运行单元测试", "测试代码", "测试这个项目的代码",
        "运行代码测试",
    )),
    "help": (
        "运行 `telechat --help` 可以看到所有命令。",
        ("telechat --help",), (
        "查看所有命令", "查看帮助", "看到所有命令", "列出命令", "列出所有命令", "获得帮助", "查看命令列表",
        "看命令列表", "看帮助", "得到帮助", "得到命令列表", "查看命令的帮助", "看到命令的帮助",
        "获得命令列表", "知道有哪些命令", "查看有哪些命令",
    )),
    "install": (
        "在项目目录运行 `pip install .` 就能安装。",
        ("pip install .",), (
        "安装", "安装 telechat", "安装工具包", "安装 telechat 工具包", "安装这个项目", "安装这个工具包",
        "装好工具包", "装好 telechat", "手动安装", "手动安装工具包", "手动安装 telechat", "用 pip 安装",
        "用 pip 安装工具包", "用 pip 装 telechat", "安装 TeleChat 工具包和依赖", "安装项目依赖",
    )),
    "tokenizer": (
        "用 `telechat tokenizer train` 训练分词器。",
        ("telechat tokenizer train",), (
        "训练分词器", "训练一个分词器", "训练自己的分词器", "做一个分词器", "做分词器", "做自己的分词器",
        "得到自己的分词器", "得到一个分词器", "用自己的数据训练分词器", "用自己的数据做分词器",
        "训练新的分词器", "做一个新的分词器", "训练词表", "训练自己的词表", "做一个词表", "得到新的词表",
    )),
    "remake": (
        "运行 `make demo-model` 可以重新训练演示模型。",
        ("make demo-model",), (
        "重新训练演示模型", "重新训练你", "复现演示模型", "复现演示模型的训练", "从头训练演示模型",
        "从头训练你", "自己训练演示模型", "自己训练出演示模型", "再训练一次演示模型", "再训练一次你",
        "重新做出演示模型", "自己做出演示模型", "复现你的训练", "重新得到演示模型", "从头复现演示模型",
    )),
}  # fmt: skip
_EN: dict[str, _Entry] = {
    "chat": (
        "Run `telechat chat` in a terminal to start chatting.",
        ("telechat chat",), (
        "start chatting", "start a chat", "chat in the terminal", "talk to the model", "chat with the model",
        "start a conversation", "open a chat", "open a chat in the terminal",
        "talk to the model in the terminal", "have a conversation in the terminal",
        "start a chat in the terminal", "have a chat with the model", "start talking to the model",
        "open a conversation with the model", "have a conversation with the model",
    )),
    "serve": (
        "Run `telechat serve demo` to start the API on port 8070.",
        ("telechat serve demo", "8070"), (
        "start the API", "start the server", "run the server", "run the API", "serve the model",
        "start the API server", "run the API server", "start the service", "run the service",
        "run the API service", "start the API service", "start only the API", "launch the server",
        "launch the API", "launch the API service", "serve the demo model", "run only the API server",
        "serve a model",
    )),
    "deploy": (
        "Run `python deploy.py`. It sets everything up and opens the API and the chat page.",
        (
        "python deploy.py", "API"), (
        "deploy", "deploy the model", "deploy TeleChat", "deploy it", "deploy everything",
        "set everything up", "deploy it on my computer", "deploy the model on my computer",
        "deploy everything at once", "deploy TeleChat quickly", "deploy the model quickly",
        "deploy everything on my machine", "deploy TeleChat on my machine", "set up TeleChat",
        "set up everything on my computer",
    )),
    "generate": (
        "Run `telechat generate demo --input-file in.jsonl --output out.jsonl` for a batch.",
        (
        "telechat generate", "--input-file", "--output"), (
        "generate in a batch", "generate answers in a batch", "generate answers for a file",
        "answer a batch of questions", "answer all questions in a file", "process a file of questions",
        "process a batch of prompts", "run a batch", "run a batch of prompts", "generate from a file",
        "generate answers from a file of prompts", "answer many questions at once",
        "process many questions at once", "run many prompts at once", "process all prompts in a file",
        "answer all prompts from a file",
    )),
    "doctor": (
        "Run `telechat doctor`. It checks devices, memory and missing parts.",
        ("telechat doctor",), (
        "check my installation", "check my setup", "check the installation", "check the setup",
        "find problems", "find problems in my setup", "find problems with the installation",
        "check my devices", "check devices and memory", "see my devices", "see my devices and memory",
        "check a model folder", "check my model folder", "diagnose problems", "diagnose my setup",
        "diagnose my installation", "check for problems",
    )),
    "python": (
        "In Python use `telechat.load_model(\"demo\")`, or `telechat.LLM(\"demo\")` to chat.",
        (
        "telechat.load_model", "telechat.LLM"), (
        "load the model in Python", "load a model in Python", "use the model in Python",
        "use the model from Python", "load the model from Python", "call the model from Python",
        "call the model in Python", "use the model in my code", "load the model in my code",
        "call the model in my code", "load the model with Python code", "call the model from Python code",
        "use the model in a Python program", "load the model in a Python program",
        "call a model from my program",
    )),
    "tune": (
        f"Use `telechat train --config recipes/sft.yaml`. {_STATUS_EN}",
        ("telechat train", "docs/status.md"), (
        "fine-tune the model", "fine-tune a model", "train a model", "train the model",
        "fine-tune on my data", "train on my data", "fine-tune the model on my data",
        "train the model on my data", "fine-tune my model", "train my own model", "fine-tune my own model",
        "start fine-tuning", "start training", "train on my own data", "fine-tune on my own data",
    )),
    "quantize": (
        f"Use `telechat quantize run`. {_STATUS_EN}",
        ("telechat quantize run", "docs/status.md"), (
        "quantize the model", "quantize a model", "quantize my model", "quantize the model to int4",
        "quantize the model to int8", "quantize a model to int8", "quantize to int4",
        "quantize my model to int8", "compress the model to int4", "compress the model to int8",
        "compress a model to int4", "get a quantized model", "make a quantized model", "make an int4 model",
        "get an int8 model", "make an int8 model", "get an int4 model",
    )),
    "convert": (
        f"Use `telechat checkpoint convert`. {_STATUS_EN}",
        (
        "telechat checkpoint convert", "docs/status.md"), (
        "convert the weights", "convert a checkpoint", "convert my checkpoint", "convert the model to GGUF",
        "convert the weights to GGUF", "convert a checkpoint to GGUF", "convert the model to Llama format",
        "convert the weights to Llama format", "convert a model to another format",
        "convert the weights to another format", "change the format of the weights",
        "change the format of a checkpoint", "change the checkpoint format",
        "convert a model to GGUF format", "convert the checkpoint format",
    )),
    "docs": (
        "The API docs are at http://127.0.0.1:8070/docs .",
        ("8070/docs",), (
        "find the API docs", "open the API docs", "see the API docs", "read the API docs",
        "find the API documentation", "open the API documentation", "read the API documentation",
        "see the API documentation", "get to the API docs", "find docs for the API", "see docs for the API",
        "open the docs of the API", "read the docs of the API", "get to the API documentation",
        "see the documentation of the API",
    )),
    "page": (
        "The chat page is at http://127.0.0.1:8501 ; run `python deploy.py` first.",
        ("8501",), (
        "open the chat page", "open the web page", "use the chat page", "use the web page",
        "chat in the browser", "chat in my browser", "open the page", "open the page in my browser",
        "see the chat page", "see the web page", "find the chat page", "find the web page",
        "chat on the web page", "use the page in the browser", "get to the chat page", "get to the web page",
    )),
    "test": (
        "Run `make test`. It sets everything up and runs all tests.",
        ("make test",), (
        "run the tests", "run all tests", "test the project", "test the code", "test this project",
        "run the unit tests", "run all unit tests", "run tests for the project", "run tests for this code",
        "test all the code", "start the tests", "start all tests", "run the tests of this project",
        "start the unit tests", "test the whole project", "run the whole test suite", "start the test suite",
        "run the test suite",
    )),
    "help": (
        "Run `telechat --help` to see all commands.",
        ("telechat --help",), (
        "see all commands", "list all commands", "list the commands", "see the commands", "get help",
        "see the help", "get a list of commands", "see a list of commands", "get help with the commands",
        "show all commands", "show the help", "show the commands", "find all commands",
        "find the list of commands", "get the help", "find help",
    )),
    "install": (
        "Run `pip install .` in the project folder.",
        ("pip install .",), (
        "install", "install telechat", "install it", "install the toolkit", "install the telechat toolkit",
        "install the project", "install this project", "install it with pip", "install telechat with pip",
        "install the toolkit with pip", "install the toolkit by hand", "install it by hand",
        "install telechat by hand", "install the package", "install the telechat package",
        "install this package with pip",
    )),
    "tokenizer": (
        "Use `telechat tokenizer train`.",
        ("telechat tokenizer train",), (
        "train a tokenizer", "train the tokenizer", "train my own tokenizer", "make a tokenizer",
        "make my own tokenizer", "build a tokenizer", "build my own tokenizer", "train a new tokenizer",
        "make a new tokenizer", "get a new tokenizer", "get my own tokenizer", "train a vocabulary",
        "make a vocabulary", "build a new vocabulary", "train my own vocabulary", "build a vocabulary",
    )),
    "remake": (
        "Run `make demo-model` to train the demo model again.",
        ("make demo-model",), (
        "train the demo model again", "train you again", "train the demo model myself", "train you myself",
        "reproduce the demo model", "reproduce you", "train the demo model from scratch",
        "train you from scratch", "make the demo model again", "make the demo model myself",
        "build the demo model again", "build the demo model myself", "reproduce the demo model from scratch",
        "build the demo model from scratch", "reproduce the training of the demo model",
        "make the demo model from scratch",
    )),
}  # fmt: skip
_EXTRA_ZH: dict[str, tuple[str, ...]] = {
    "docs": (
        "API 文档在哪里？", "接口文档在哪里？", "API 文档的网址是什么？", "接口文档的网址是什么？",
        "哪里有 API 文档？", "哪里有接口文档？", "在哪里看 API 文档？", "在哪里看接口文档？",
        "API 文档的地址是什么？", "接口文档的地址是什么？",
    ),
    "page": (
        "聊天网页在哪里？", "网页在哪里？", "聊天网页的网址是什么？", "聊天网页的地址是什么？",
        "网页的端口是多少？", "聊天网页的端口是多少？", "聊天页面在哪里？", "聊天页面的端口是多少？",
        "网页用哪个端口？", "聊天页面用哪个端口？",
    ),
    "serve": (
        "API 的端口是多少？", "API 用哪个端口？", "API 服务的端口是多少？", "接口服务的端口是多少？",
        "接口用哪个端口？", "接口服务用哪个端口？", "服务用哪个端口？", "服务的端口是多少？",
        "API 服务用哪个端口？", "接口的端口是多少？",
    ),
}  # fmt: skip
_EXTRA_EN: dict[str, tuple[str, ...]] = {
    "docs": (
        "Where are the API docs?", "Where is the API documentation?", "Where can I find the API docs?",
        "Where can I read the API docs?", "Where can I find the API documentation?",
        "Where can I read the API documentation?", "What is the address of the API docs?",
        "What is the address of the API documentation?", "Where do I find the API docs?",
        "Where do I find the API documentation?",
    ),
    "page": (
        "Where is the chat page?", "Where is the web page?", "Where can I find the chat page?",
        "Where can I find the web page?", "What is the address of the chat page?",
        "What is the address of the web page?", "Which port does the chat page use?",
        "Which port does the web page use?", "What is the port of the chat page?",
        "What is the port of the web page?",
    ),
    "serve": (
        "Which port does the API use?", "Which port does the server use?", "What is the port of the API?",
        "What is the port of the server?", "What port does the API use?", "What port does the server use?",
        "Which port is the API on?", "Which port is the server on?", "What port is the API on?",
        "What port is the server on?",
    ),
}  # fmt: skip


def _intents(
    language: Language, frames: tuple[str, ...], entries: dict[str, _Entry], extra: dict[str, tuple[str, ...]]
) -> tuple[Intent, ...]:
    """Intents of one language; every required literal is a group of its own."""

    def required(literals: tuple[str, ...]) -> Required:
        return tuple((literal,) for literal in literals)

    return tuple(
        Intent(
            name=name,
            language=language,
            answer=answer,
            required=required(literals),
            wordings=framed(frames, cores, extra.get(name, ())),
        )
        for name, (answer, literals, cores) in entries.items()
    )


TOOLKIT_HELP = IntentTask(
    name="toolkit_help",
    share=1.2,
    intents=_intents("zh", _FRAMES_ZH, _ZH, _EXTRA_ZH) + _intents("en", _FRAMES_EN, _EN, _EXTRA_EN),
)
TASKS: tuple[Task, ...] = (TOOLKIT_HELP,)
