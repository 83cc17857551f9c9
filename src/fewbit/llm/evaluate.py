"""Tasks of lm-evaluation-harness on a quantized model and its float original: the same questions, compared one by one.

A task is a file: questions as JSON lines ({"question", "choices", "answer": the index of the right one}), or a harness task as
YAML whose data are files beside it. Nothing is fetched, and no code of a task file is run.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.errors import FewbitError, MissingExtra

DRAWS, SEED = 10_000, 0
QUESTIONS = {
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


def evaluate(folder: Path, tasks: list[Path], against: Path | None, limit: int | None = None, batch: int = 8) -> dict[str, Any]:
    """{task: {metric: {value, n, ci95, and beside the float model: float, difference, difference_ci95, better, worse}}}."""
    configs = [task(path) for path in tasks]
    ours = _scores(folder, configs, limit, batch)
    theirs = _scores(against, configs, limit, batch) if against else {}
    return {
        name: {metric: compared(values, theirs.get(name, {}).get(metric)) for metric, values in metrics.items()}
        for name, metrics in ours.items()
    }


def task(path: Path) -> dict[str, Any]:
    """The harness's description of a task, its data files by their full paths."""
    if not path.is_file():
        raise FewbitError(
            f"--tasks {path}: no such file; give questions as .jsonl, or a task of the harness as .yaml with its data"
        )
    if path.suffix == ".jsonl":
        _check_questions(path)
        return {
            "task": path.stem,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
            **QUESTIONS,
        }
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise FewbitError(f"{path}: not plain YAML (tasks that bring Python functions are not run)") from None
    if not isinstance(found, dict) or not isinstance(found.get("task"), str):
        raise FewbitError(f"{path}: not a task of lm-evaluation-harness; it has no name under `task`")
    files = (found.get("dataset_kwargs") or {}).get("data_files")
    if found.get("dataset_path") not in ("json", "csv", "parquet", "text") or not files:
        raise FewbitError(
            f"{path}: its data are not files; give dataset_path: json and dataset_kwargs: data_files, nothing is fetched"
        )
    files = files if isinstance(files, dict) else {"test": files}
    placed = {split: str((path.parent / str(name)).resolve()) for split, name in files.items()}
    for name in placed.values():
        if not Path(name).is_file():
            raise FewbitError(f"{path}: its data file {name} does not exist")
    return found | {"dataset_kwargs": {"data_files": placed}}


def _check_questions(path: Path) -> None:
    count = 0
    for k, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            q = json.loads(line)
            whole = _is_text(q["question"]) and len(q["choices"]) > 1 and all(map(_is_text, q["choices"]))
            ok = whole and type(q["answer"]) is int and 0 <= q["answer"] < len(q["choices"])
        except (ValueError, KeyError, TypeError, RecursionError):
            ok = False
        if not ok:
            raise FewbitError(
                f'{path}: line {k} is not {{"question": text, "choices": [texts], "answer": index of the right one}}; none empty'
            )
        count += 1
    if not count:
        raise FewbitError(f"{path}: no questions in it")


def _is_text(value: Any) -> bool:
    """Not blank, and no half characters (JSON can write a lone surrogate)."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def _scores(folder: Path, configs: list[dict[str, Any]], limit: int | None, batch: int) -> dict[str, dict[str, np.ndarray]]:
    """Task -> metric -> value of each question, in the order of the questions."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
    except ImportError as e:
        raise MissingExtra((e.name or "lm_eval").split(".")[0], "eval") from None
    from fewbit.llm import calibration, perplexity

    tokenizer = calibration.load_tokenizer(folder)
    bare = tokenizer.bos_token_id is None and tokenizer.eos_token_id is None
    first = {"prefix_token_id": 0} if bare else {}  # the harness wants a token to begin with
    begins = bool(calibration.beginning(folder).ids)
    model = HFLM(
        pretrained=perplexity.load(folder), tokenizer=tokenizer, batch_size=batch, device="cpu", add_bos_token=begins, **first
    )
    found = simple_evaluate(
        model=model, tasks=[dict(c) for c in configs], limit=limit, log_samples=True, bootstrap_iters=0, verbosity="ERROR"
    )
    scores: dict[str, dict[str, np.ndarray]] = {}
    for name, samples in (found or {})["samples"].items():
        samples = sorted(samples, key=lambda s: s["doc_id"])
        numbers = [m for m in samples[0]["metrics"] if isinstance(samples[0].get(m), int | float)]
        scores[name] = {m: np.array([float(s[m]) for s in samples]) for m in numbers}
    return scores


def compared(values: np.ndarray, floats: np.ndarray | None) -> dict[str, Any]:
    """Means over questions with bootstrap intervals; of the difference over the same questions."""
    found: dict[str, Any] = {"value": float(values.mean()), "n": len(values), "ci95": interval(values)}
    if floats is None:
        return found
    off = values - floats
    found |= {"float": float(floats.mean()), "difference": float(off.mean()), "difference_ci95": interval(off)}
    return found | {"better": int((off > 0).sum()), "worse": int((off < 0).sum())}


def interval(values: np.ndarray) -> list[float]:
    """95%, by resampling questions. (No question differing says no more than 3 / n: the rule of three.)"""
    if not values.any() or (values == values[0]).all():
        reach = 3 / len(values)
        return [float(values[0] - reach), float(values[0] + reach)]
    random = np.random.default_rng(SEED)
    means = np.concatenate(
        [values[random.integers(0, len(values), (500, len(values)))].mean(axis=1) for _ in range(DRAWS // 500)]
    )
    return [float(x) for x in np.quantile(means, (0.025, 0.975))]
