"""What the hook costs, as ratios of figures taken in turn on the same machine.

    python -m tests.lab.bench

Start: from the hook's start to its `conntrackd -c` starting, beside a bare interpreter that imports
click and sh. Transition: a promotion with 100,000 connections after the peer's death, from its
first request to its last proof, beside the four client calls it is made of.
"""

from __future__ import annotations

import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .pair import Pair

COMMAND = Path(sys.executable).with_name("ftfw-transition")
CONFIGURATION = Path(__file__).parents[2] / "packaging/conntrackd/conntrackd.conf"
STARTS = 30
ENTRIES = 100_000
ROUNDS = 3
RAW = ("-c", "-f", "-R", "-B")


def interpreter() -> float:
    """Seconds that a bare interpreter takes to import what the hook is built on."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import click, sh"], check=True)
    return time.perf_counter() - began


def start(directory: Path) -> float:
    """Seconds from the hook's start to its commit, asked of a client that only says it started."""
    started = directory / "started"
    client = directory / "conntrackd"
    if not client.exists():
        os.mkfifo(started)
        client.write_text(f'#!/bin/sh\n[ "$3" = -c ] && echo >"{started}"\nexit 0\n')
        client.chmod(0o755)
    pipe = os.open(started, os.O_RDWR | os.O_NONBLOCK)
    try:
        began = time.perf_counter()
        hook = subprocess.Popen(
            [COMMAND, "--config", CONFIGURATION, "--conntrackd", client,
             "--run-dir", directory / "run", "primary"],
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        ready, _, _ = select.select([pipe], [], [], 30)
        took = time.perf_counter() - began
        hook.wait(timeout=60)
    finally:
        os.close(pipe)
    if not ready:
        raise RuntimeError("the hook never asked for a commit")
    return took


def promotion(directory: Path, *, raw: bool) -> float:
    """Seconds of one promotion, by the four calls or by the hook, in a pair of its own."""
    with Pair(directory, COMMAND) as pair:
        pair.fw1.start_conntrackd()
        pair.fw2.start_conntrackd()
        pair.fw1.load_entries(ENTRIES)
        pair.fw2.until(lambda: pair.fw2.external() == ENTRIES, 60, "replicated")
        pair.fw1.cut()
        began = time.perf_counter()
        if raw:
            for option in RAW:
                pair.fw2.client(option)
            return time.perf_counter() - began
        event = pair.fw2.hook_json("primary")
        if event["outcome"] != "ok":
            raise RuntimeError(event["reason"])
        return float(sum(step["seconds"] for step in event["steps"]))


def main() -> None:
    """Print both ratios, with the medians they come from."""
    with tempfile.TemporaryDirectory() as directory:
        here = Path(directory)
        bare, hook = [], []
        for _ in range(STARTS):
            bare.append(interpreter())
            hook.append(start(here))
        _report("hook start to `conntrackd -c`", hook, "bare interpreter", bare)
        calls, whole = [], []
        for number in range(ROUNDS):
            calls.append(promotion(here / f"raw{number}", raw=True))
            whole.append(promotion(here / f"hook{number}", raw=False))
        _report(f"promotion with {ENTRIES:,} connections", whole, "four client calls", calls)


def _report(what: str, ours: list[float], beside: str, theirs: list[float]) -> None:
    ours_median, theirs_median = statistics.median(ours), statistics.median(theirs)
    ratio = statistics.median(mine / its for mine, its in zip(ours, theirs, strict=True))
    print(
        f"{what}: {ours_median * 1000:.0f} ms, {beside}: {theirs_median * 1000:.0f} ms, "
        f"ratio {ratio:.2f}"
    )


if __name__ == "__main__":
    main()
