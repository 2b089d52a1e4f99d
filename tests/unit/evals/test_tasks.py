"""Scores of two models at the same tasks: verdicts, intervals, and what reaches the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from telechat import load_model, load_tokenizer
from telechat.checkpoint.hub import demo_folder
from telechat.cli.main import main
from telechat.data.demo import TASKS
from telechat.errors import ConfigError
from telechat.evals.choices import Question, is_right, read_questions
from telechat.evals.intervals import change, wilson
from telechat.evals.tasks import DEMO, TaskScores, scores

CSV = 'id,question,A,B,C,D,answer\n0,"What is 1+1?\nThink.",1,None,3,2,D\n1,哪个是酱油？,生抽,醋,盐,糖,a\n'


def test_intervals() -> None:
    # Wilson's interval of 81 of 263, as Newcombe (1998) prints it.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == 1
    same = [True] * 90 + [False] * 10
    low, high = change(same, same)
    assert low == pytest.approx(-high) and 0 < high < 0.03
    lost = [False] * 30 + same[30:]
    low, high = change(same, lost)
    assert low < -0.3 < high < 0


def test_scores_are_of_the_same_rows() -> None:
    first = {"one": [True, True, False], "two": [False]}
    second = {"one": [True, False, False], "two": [True]}
    whole, one, two = scores(first, second)
    assert (whole.task, whole.num_rows, whole.num_right, whole.change) == (DEMO, 4, (2, 2), 0.0)
    assert (one.task, one.num_right, one.change) == ("one", (2, 1), pytest.approx(-1 / 3))
    assert two.intervals == (wilson(0, 1), wilson(1, 1)) and two.change_interval == change([False], [True])
    assert scores({}, {}) == []
    with pytest.raises(ValueError):
        TaskScores.of("other rows", [True], [True, False])


def test_questions_of_files(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(CSV, encoding="utf-8")
    first, second = read_questions(path)
    assert first == Question("What is 1+1?\nThink.", ("1", "None", "3", "2"), 3)
    assert first.prompt == "What is 1+1?\nThink.\nA. 1\nB. None\nC. 3\nD. 2\nAnswer:"
    assert second.right == 0 and second.prompt.endswith("D. 糖\n答案：")
    path.write_text('"1+1, or 2?",1,2,3,4,B\n', encoding="utf-8")
    assert read_questions(path) == [Question("1+1, or 2?", ("1", "2", "3", "4"), 1)]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no questions"),
        ("question,A,B\nwhy,1,2\n", "no column 'answer'"),
        ("question,A,B,answer\nwhy,1,2,C\n", "question 2: 2 options, the right one is 'C'"),
        ("why,1,B\n", "question 1: 1 options"),
    ],
)
def test_files_that_are_no_questions(text: str, problem: str, tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        read_questions(path)
    with pytest.raises(ConfigError, match="Cannot read"):
        read_questions(tmp_path / "none.csv")


def test_the_likeliest_letter() -> None:
    """By the whole vocabulary's probabilities after the prompt, one letter at a time."""
    tokenizer, model = load_tokenizer(demo_folder()), load_model("demo", device="cpu")
    question = Question("Which?", ("a", "b", "c"), 0)
    likely = []
    for letter in "ABC":
        ids = tokenizer.encode(f"{question.prompt} {letter}")
        logits = model(torch.tensor([ids]))[0].float()
        likely.append(float(torch.log_softmax(logits, -1)[-2, ids[-1]].detach()))
    best = likely.index(max(likely))
    found = [is_right(model, tokenizer, Question("Which?", ("a", "b", "c"), right)) for right in range(3)]
    assert found == [right == best for right in range(3)]


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both options arrive at the table, the page and the numbers."""
    data, questions, page, numbers = (tmp_path / name for name in ("d.txt", "q.csv", "page.html", "n.json"))
    data.write_text("你好，请问你是谁？\n", encoding="utf-8")
    questions.write_text(CSV, encoding="utf-8")
    words = ["quantize", "report", "demo", "demo", "--data", str(data), "--worst", "0", "--speed-tokens", "0"]
    words += ["--output", str(page), "--json", str(numbers)]
    assert main([*words, "--demo-rows", "1", "--choices", str(questions)]) == 0
    printed = capsys.readouterr().out
    assert f"demo tasks, {len(TASKS)} rows" in printed and "multiple choice, 2 rows" in printed
    content = json.loads(numbers.read_text())
    assert [task["task"] for task in content["tasks"]] == [DEMO, *TASKS, "multiple choice"]
    assert content["tasks"][0]["num_right"][0] >= 10 and content["tasks"][0]["change"] == 0
    assert content["summary"]["perplexity"][0] == content["summary"]["perplexity"][1] > 1
    text = page.read_text(encoding="utf-8")
    assert "<h2>Tasks</h2>" in text and "multiple choice, 2 rows" in text and text.count("<circle") == 16
    assert main([*words, "--demo-rows", "-1"]) == 2
    assert main(words) == 0
    assert "Tasks" not in page.read_text(encoding="utf-8")
