"""Programs in processes of their own: what is the same in one process may differ in the next."""

import os
import subprocess
import sys


def printed(program, *args, seeds):
    """Run a program side by side in a process for each hash seed, and give what each of them printed."""
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", program, *args],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
        for seed in seeds
    ]
    told = [process.communicate()[0] for process in begun]
    assert [process.returncode for process in begun] == [0] * len(begun)
    return told
