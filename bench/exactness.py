"""Split the models that people use, cut in eight ways, in three modes: how many are exact?

    python bench/exactness.py                                     everything that is not in the file yet: hours
    python bench/exactness.py --sample 300 --seconds 1200         some, always the same ones
    python bench/exactness.py --models 'timm/swin*' --cuts few    some by name

Every case is one line of JSON in `--out`, build/exactness.jsonl; run it again and it goes on. A model runs in a process
of its own: a crash, or more than `--timeout` seconds without an answer, is the outcome of one case. What a case demands
is in verdict.py, where the cuts are in cuts.py, the models in zoo/.
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import queue
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Case = tuple[str, str, str]  # model, cut, mode

MODES = ("eval", "part", "train")
CUT_NAMES = ("classifier", "block", "few", "middle", "inside", "adapter", "island", "parameter")
_BAD = ("wrong", "crashed")


def main() -> int:
    """Run the cases, print the table; 1 if any is wrong or crashed."""
    options = _options()
    if options.worker:
        _work(options.worker, [tuple(case) for case in json.load(sys.stdin)], options.memory_gb)
        return 0
    cases = _chosen(options)
    done = _read(options.out)
    if options.again:
        done = {case: line for case, line in done.items() if not line["outcome"].startswith(tuple(options.again))}
    todo = [case for case in cases if case not in done]
    if todo and not options.table:
        _run(todo, options)
    lines = _read(options.out)
    print(_report([lines[case] for case in cases if case in lines], len(cases)))
    return int(any(lines[case]["outcome"].startswith(_BAD) for case in cases if case in lines))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "build" / "exactness.jsonl")
    parser.add_argument("--family", nargs="*", default=[], help="torchvision, timm, transformers")
    parser.add_argument("--models", nargs="*", default=["*"], help="patterns: 'timm/*', '*swin*'")
    parser.add_argument("--cuts", nargs="*", default=CUT_NAMES, choices=CUT_NAMES)
    parser.add_argument("--modes", nargs="*", default=MODES, choices=MODES)
    parser.add_argument("--sample", type=int, help="only so many cases, chosen by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", nargs="*", default=[], help="outcomes to try anew: wrong, refused, crashed:OSError")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no model after so long")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds that one case may take")
    parser.add_argument("--memory-gb", type=float, default=14.0, help="address space of one process")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="run nothing, print what is known")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def _chosen(options: argparse.Namespace) -> list[Case]:
    from zoo import specimens

    cases = [
        (name, kind, mode)
        for name in specimens(*options.family)
        if any(fnmatch.fnmatch(name, f"*{pattern}" if "/" not in pattern else pattern) for pattern in options.models)
        for kind in options.cuts
        for mode in options.modes
    ]
    if options.sample is not None and options.sample < len(cases):
        cases = random.Random(options.seed).sample(cases, options.sample)
    return cases


def _read(path: Path) -> dict[Case, dict[str, Any]]:
    """Read the outcomes so far; of one case, the newest."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return {(line["model"], line["cut"], line["mode"]): line for line in lines}


# Running --------------------------------------------------------------------------------------------------------------


def _run(todo: list[Case], options: argparse.Namespace) -> None:
    by_model: dict[str, list[Case]] = defaultdict(list)
    for case in todo:
        by_model[case[0]].append(case)
    models = sorted(by_model)
    random.Random(options.seed).shuffle(models)  # a budget that ends early has met some of each family
    options.out.parent.mkdir(parents=True, exist_ok=True)
    started, lock, count = time.perf_counter(), threading.Lock(), 0

    def write(line: dict[str, Any]) -> None:
        nonlocal count
        with lock, options.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
            count += 1
            shown = "" if line["outcome"] == "exact" else f"  {line['message'][:150]}"
            print(
                f"{count}/{len(todo)} {line['model']} {line['cut']} {line['mode']}: {line['outcome']}{shown}",
                flush=True,
            )

    def run(model: str) -> None:
        left = by_model[model]
        while left and time.perf_counter() - started < options.seconds:
            answered = 0
            for line in _answers(model, left, options):
                write(line)
                answered += 1
            left = left[answered:]

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, models))


def _answers(model: str, cases: list[Case], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run cases of one model in one process, as far as it gets; the case that ends it is the last answer."""
    command = [sys.executable, __file__, "--worker", model, "--memory-gb", str(options.memory_gb)]
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"} | dict(os.environ)
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        assert child.stdin is not None
        child.stdin.write(json.dumps(cases))
        child.stdin.close()
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(child, lines), daemon=True).start()
        for case in cases:
            try:
                line = lines.get(timeout=options.timeout)
                why = "Killed"
            except queue.Empty:
                line, why = None, "Timeout"
            if line is None:
                if why == "Timeout":
                    child.kill()
                status = child.wait()
                if status == 1:  # Python's own end: an error of this file, not of the case
                    errors.seek(0)
                    raise RuntimeError(f"Cannot run {model}: {errors.read()[-2000:]}")
                errors.seek(0)
                said = f"no answer in {options.timeout:.0f} s" if why == "Timeout" else f"exit {status}"
                yield _line(case, {"outcome": f"crashed:{why}", "message": f"{said}: {errors.read()[-600:].strip()}"})
                return
            yield _line(case, json.loads(line))
        child.wait()


def _pump(child: subprocess.Popen, lines: "queue.Queue[str | None]") -> None:
    assert child.stdout is not None
    for line in child.stdout:
        lines.put(line)
    lines.put(None)


def _line(case: Case, verdict: dict[str, Any]) -> dict[str, Any]:
    model, kind, mode = case
    return {"model": model, "cut": kind, "mode": mode} | verdict


def _work(name: str, cases: list[Case], memory_gb: float) -> None:
    """Judge cases of one model, one line of JSON each; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    size = int(memory_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    import torch
    from verdict import Subject, judge
    from zoo import specimens

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    warnings.simplefilter("ignore")
    subject = Subject(specimens(name.partition("/")[0])[name])
    for _, kind, mode in cases:
        verdict = dataclasses.asdict(judge(subject, kind, mode))
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()


# Telling --------------------------------------------------------------------------------------------------------------


def _report(lines: list[dict[str, Any]], wanted: int) -> str:
    outcomes = sorted({line["outcome"] for line in lines}, key=lambda name: (name != "exact", name))
    families: dict[str, Counter] = defaultdict(Counter)
    for line in lines:
        for family in (line["model"].partition("/")[0], "total"):
            families[family][line["outcome"]] += 1
            families[family]["cacheable"] += line.get("cacheable") == "yes"
    rows = [("", *families)]
    rows += [(name, *(str(families[family][name]) for family in families)) for name in (*outcomes, "cacheable")]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    text = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    models = {line["model"] for line in lines}
    judged = [line for line in lines if line["outcome"] != "skipped"]
    exact = [line for line in judged if line["outcome"] == "exact"]
    ratios = [line["split_forwards"] for line in lines if line.get("split_forwards")]
    text.append(f"\n{len(lines)} of {wanted} cases, {len(models)} models; exact {len(exact)} of {len(judged)} judged")
    if ratios:
        text.append(f"a split takes {statistics.median(ratios):.1f} forwards (median), at most {max(ratios):.0f}")
    for outcome in sorted(set(outcomes) - {"exact"}, key=lambda name: (name == "skipped", name)):
        text += _grouped(outcome, [(line, line["message"]) for line in lines if line["outcome"] == outcome])
    impure = [(line, f"{line['cacheable']}: {line['cacheable_message']}") for line in exact]
    text += _grouped("exact, but no rows", [pair for pair in impure if pair[0].get("cacheable") != "yes"])
    return "\n".join(text)


def _grouped(title: str, found: list[tuple[dict[str, Any], str]]) -> list[str]:
    """List cases under their reason; reasons that differ in names and numbers only are one."""
    groups: dict[str, list[tuple[dict[str, Any], str]]] = defaultdict(list)
    for line, message in found:
        groups[re.sub(r"'[^']*'|[0-9.e+-]+", "_", message)].append((line, message))
    text = [f"\n{title}: {len(found)}"] if found else []
    for group in sorted(groups.values(), key=len, reverse=True):
        by_model: dict[str, list[str]] = defaultdict(list)
        for line, _ in group:
            by_model[line["model"]].append(f"{line['cut']} {line['mode']}")
        text.append(f"  {len(group)} x {group[0][1][:1200]}")
        text += [f"      {model}: {', '.join(cases)}" for model, cases in sorted(by_model.items())]
    return text


if __name__ == "__main__":
    sys.exit(main())
