"""Run every measurement behind the numbers in the docs, or those named.

    make bench                          everything
    make bench ARGS="epochs extraction" some

Each prints ratios from one run, the two sides in turn. `--json FILE` also writes them.
"""

import argparse
import importlib
import json
import platform
from pathlib import Path

import torch

BENCHES = (
    "epochs", "extraction", "memory", "split", "steps", "feed", "precision", "fingerprint", "again", "index", "purity",
    "energy", "heads", "original", "company", "live", "curves", "peers", "fast",
    "pitch", "coarse", "mpg", "diamonds", "digits", "violations", "certificates",
)  # fmt: skip


def main() -> None:
    """Run the benchmarks and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=BENCHES, choices=(*BENCHES, []), help="which to run")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, {platform.system()}")
    results = {}
    for name in options.names or BENCHES:
        module = importlib.import_module(name)
        print(f"\n{name}: {module.__doc__.splitlines()[0]}", flush=True)
        results[name] = module.measure()
        for line in results[name]:
            print(f"  {line}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
