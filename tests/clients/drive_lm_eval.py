"""lm-eval's local-completions: our tokenizer routes, prompts as batches of ids, scores from echoed logprobs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.served import KEY, Served

HERE = Path(__file__).parent
TASKS = ("order_of_words", "end_of_story", "surprise")


def start(
    server: Served,
    results: Path,
    *more: str,
    key: str = KEY,
    batch: int = 1,
    tasks: tuple[str, ...] = TASKS,
) -> Any:
    """Its command on our tasks, not waited for."""
    model = {
        "base_url": f"{server.v1}/completions",
        "model": "any",
        "auth_token": key,
        "tokenizer_backend": "remote",
        "max_retries": 1,
        "num_concurrent": batch,
    }
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "local-completions"]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model.items())]
    command += ["--tasks", ",".join(tasks), "--include_path", "lm_eval_tasks", "--batch_size", str(batch)]
    command += ["--output_path", str(results), "--log_samples", *more]
    environment = {**os.environ, "OPENAI_API_KEY": key}
    with (results.parent / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=HERE, env=environment, stdout=log, stderr=log)


def finish(process: Any, results: Path) -> str:
    """What it wrote, when it has ended."""
    try:
        process.wait(100)
    finally:
        process.kill()
    return (results.parent / "log").read_text()


def answers(results: Path) -> dict[str, list[Any]]:
    """Of each task, what the server answered to each of its requests."""
    found = {}
    for task in TASKS:
        (path,) = results.rglob(f"samples_{task}_*.jsonl")
        samples = [json.loads(line) for line in path.read_text().splitlines()]
        found[task] = [sample["resps"] for sample in sorted(samples, key=lambda sample: sample["doc_id"])]
    return found


@pytest.fixture(scope="module")
def one_by_one(server: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("one") / "results"
    process = start(server, results)
    log = finish(process, results)
    assert process.returncode == 0, log
    return results


def test_scores_are_those_of_a_model_that_knows_english(one_by_one: Path) -> None:
    (path,) = one_by_one.rglob("results_*.json")
    scores = json.loads(path.read_text())["results"]
    assert scores["order_of_words"]["acc,none"] >= 0.9
    assert 1 < scores["surprise"]["word_perplexity,none"] < 100


def test_generated_text_ends_where_the_task_says(one_by_one: Path) -> None:
    texts = [text for ((text,),) in answers(one_by_one)["end_of_story"]]
    assert any(texts)
    assert not any("." in text for text in texts)


def test_batches_beside_each_other_give_the_same_answers(server: Served, tmp_path: Path, one_by_one: Path) -> None:
    process = start(server, tmp_path / "results", batch=4)
    log = finish(process, tmp_path / "results")
    assert process.returncode == 0, log
    assert answers(tmp_path / "results") == answers(one_by_one)


def test_a_wrong_key_is_told(server: Served, tmp_path: Path) -> None:
    process = start(server, tmp_path / "results", key="wrong")
    assert "401" in finish(process, tmp_path / "results")
    assert process.returncode != 0


def test_a_run_that_is_killed_leaves_nothing_behind(server: Served, tmp_path: Path) -> None:
    endless = ("--gen_kwargs", "max_gen_toks=1500,ignore_eos=True,until=<never>")
    process = start(server, tmp_path / "results", *endless, batch=4, tasks=("end_of_story",))
    with process:
        server.busy()
        process.kill()
    server.at_rest()
