"""Peak memory of extraction and feeding, for data sets of one and of eight times the size."""

import subprocess
import sys

_CODE = """
import tempfile, torch
import forethought as ft

class Rows(torch.utils.data.Dataset):
    def __len__(self): return {rows}
    def __getitem__(self, index): return torch.randn(256, generator=torch.Generator().manual_seed(index)), index

torch.set_num_threads(2)
model = torch.nn.Sequential(torch.nn.Linear(256, 1024), torch.nn.ReLU(), torch.nn.Linear(1024, 2))
model[0].requires_grad_(False)
with tempfile.TemporaryDirectory() as folder:
    features = ft.extract(model, Rows(), folder, batch_size=256)
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(int(peak.split()[1]) // 1024, features.report.size_bytes // 2**20)
"""


def measure() -> list[str]:
    """Extract in fresh processes and read their peaks."""
    lines = []
    for rows in (12_500, 100_000):
        done = subprocess.run(
            [sys.executable, "-c", _CODE.format(rows=rows)], capture_output=True, text=True, check=True
        )
        peak, stored = done.stdout.split()
        lines.append(f"{rows:,} rows, {stored} MB stored: peak of the process {peak} MB")
    return lines
