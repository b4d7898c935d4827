"""Run the frozen part once per sample: the second time, nothing is computed, and what is new is added."""

import tempfile

import torch
from torch import nn

import forethought as ft

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 5))
ft.freeze(model, until="3")
inputs, labels = torch.randn(2_000, 64), torch.randint(5, (2_000,))

with tempfile.TemporaryDirectory() as folder:
    for title, rows in (("first 1,500 rows", 1_500), ("the same again", 1_500), ("500 rows more", 2_000)):
        features = ft.extract(model, (inputs[:rows], labels[:rows]), folder, batch_size=256)
        report = features.report
        print(f"{title:<17} {report.rows_computed:>5} computed, {report.rows_reused:>5} reused")

    for values, targets in features.batches(1_000, shuffle=True):
        print("a batch:", tuple(values.shape), "with labels", tuple(targets.shape))

    with torch.no_grad():
        nn.init.normal_(model[4].weight)  # the head is no part of the features' identity
    print("another head:    ", ft.extract(model, (inputs, labels), folder, batch_size=256).report.rows_computed)
    with torch.no_grad():
        model[2].bias[0] += 1  # a frozen weight is
    print("one weight moved:", ft.extract(model, (inputs, labels), folder, batch_size=256).report.rows_computed)
