"""docs/format.md read to the letter by a stranger: json, safetensors and numpy, and nothing of forethought's."""

import json

import numpy as np
import pytest
import torch
from safetensors import deserialize
from torch import nn

import forethought as ft

DTYPES = {"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
          "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8"}  # fmt: skip


def array(tensor):
    """A tensor of a safetensors file; bfloat16 is the upper half of a float32."""
    raw = bytes(tensor["data"])
    if tensor["dtype"] == "BF16":
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return wide.view("<f4").reshape(tensor["shape"])
    return np.frombuffer(raw, DTYPES[tensor["dtype"]]).reshape(tensor["shape"])


def note(path):
    return json.loads(path.read_bytes().split(b"\n", 1)[1])


def rows_of(folder):
    """Every row of a table by its key: an array, or for int8 the product, for each tensor of the frontier."""
    said, found = note(folder / "table.note"), {}
    frontier, scales = said["provenance"]["frontier"], said["provenance"].get("scales")
    for path in folder.glob("*.safetensors"):
        tensors = dict(deserialize(path.read_bytes()))
        parts = {}
        for column in said["columns"]:
            values = array(tensors[column["name"]])
            if None in column["shape"]:
                sizes = array(tensors[column["name"] + ".sizes"])
                ends = np.cumsum([0, *np.prod(sizes, axis=1)])
                values = [values[a:b].reshape(size) for a, b, size in zip(ends, ends[1:], sizes, strict=False)]
            parts[column["name"]] = values
        for at, key in enumerate(array(tensors["keys"])):
            row = []
            for t, tensor in enumerate(frontier):
                value = parts[str(t)][at]
                if f"{t}.power" in parts:
                    work = np.float64 if tensor["dtype"] == "float64" else np.float32
                    power = np.asarray(parts[f"{t}.power"][at])  # one a row, or for each entry of a ragged one
                    entry = value.ndim - power.ndim
                    scale = np.array(scales[t], work)
                    scale = scale.reshape(-1, *[1] * (entry - 1)) if entry > 2 else scale
                    value = (
                        value.astype(work)
                        * scale
                        * (work(2.0) ** power.astype(work)).reshape(*power.shape, *[1] * entry)
                    )
                row.append(value.astype(tensor["dtype"]) if tensor["dtype"] != "bfloat16" else value)
            found[key.tobytes()] = row
    return found


def manifest_of(path):
    """The keys of a data set, and its targets."""
    raw = path.read_bytes().split(b"\n", 1)[1]
    tensors = dict(deserialize(raw))
    length = int.from_bytes(raw[:8], "little")
    facts = json.loads(json.loads(raw[8 : 8 + length])["__metadata__"]["manifest"])
    return array(tensors["keys"]), targets_of(facts["targets"], tensors)


def targets_of(form, tensors):
    if not isinstance(form, dict):
        return form
    ((kind, content),) = form.items()
    if kind == "tensor":
        return array(tensors[content])
    if kind == "dict":
        return {key: targets_of(part, tensors) for key, part in content}
    parts = [targets_of(part, tensors) for part in content]
    return tuple(parts) if kind == "tuple" else parts


class Several(nn.Module):
    """Crosses with floats of several kinds, whole numbers, flags, a picture and a number a sample."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.conv = nn.Linear(4, 6).requires_grad_(False), nn.Conv2d(1, 3, 2).requires_grad_(False)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        h = self.body(x)
        picture = self.conv(x.reshape(-1, 1, 2, 2).repeat(1, 1, 2, 2))
        trains = self.head.weight.sum()
        out = self.head(h) + (trains * picture).sum((1, 2, 3))[:, None] + (trains.double() * h.double()).float()[:, :2]
        return out * self.head.bias[(h > 0).long().sum(1) % 2][:, None] + torch.where(h > 0, trains, 0.0)[:, :2]


class Files(torch.utils.data.Dataset):
    """Numbers in files, with a label and a name: what a manifest keeps targets of."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, at):
        with open(self.paths[at]) as file:
            values = [float(word) for word in file.read().split()]
        return torch.tensor(values), {"label": at % 3, "name": f"n{at}", "both": (at * 0.5, at + 1)}


def as_numpy(rows):
    rows = rows if isinstance(rows, tuple) else (rows,)
    return [row.float().numpy() if row.dtype == torch.bfloat16 else row.numpy() for row in rows]


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16, "int8"])
def test_a_stranger_reads_features_from_the_text_alone(tmp_path, dtype):
    """The rows that a head is given, bit for bit, by the data set's order; and its targets."""
    for at in range(20):
        (tmp_path / f"{at}.txt").write_text(f"{at} {at * 7 % 5} -3 0.25")
    data = Files([str(tmp_path / f"{at}.txt") for at in range(20)])
    features = ft.extract(
        Several(), data, tmp_path / "store", dtype=dtype, batch_size=8, segment_rows=8, progress=False
    )
    assert len(features.frontier) > 1
    rows = rows_of(tmp_path / "store" / "tables" / features.table.fingerprint)
    (manifest,) = (tmp_path / "store").glob("manifests/*/*.manifest")
    keys, targets = manifest_of(manifest)
    assert len(keys) == 20
    for at, key in enumerate(keys):
        for mine, theirs in zip(rows[key.tobytes()], as_numpy(features[at][0]), strict=True):
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)
    assert (targets["label"].tolist(), targets["name"][7]) == ([at % 3 for at in range(20)], "n7")
    assert targets["both"][1].tolist() == list(range(1, 21))


def test_a_stranger_reads_rows_that_differ_in_size(tmp_path):
    """Texts without their padding, each of its own length."""
    words = [torch.randint(1, 50, (length,)) for length in (3, 7, 2, 9, 5, 1, 4, 8)]

    def collate(texts):
        return {"tokens": nn.utils.rnn.pad_sequence(texts, batch_first=True)}

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(50, 16).requires_grad_(False), nn.Linear(16, 3)

        def forward(self, tokens):
            return self.head(self.embed(tokens)) * (tokens != 0)[..., None]

    for dtype in (None, "int8"):
        texts = ft.extract(Tagger(), words, tmp_path / "store", batch_size=4, collate_fn=collate, dtype=dtype,
                           progress=False)  # fmt: skip
        rows = rows_of(tmp_path / "store" / "tables" / texts.table.fingerprint)
        theirs = [[part[at] for part in texts.numpy()] for at in range(len(words))]
        mine = list(rows.values())
        assert len(mine) == len(words)
        for row in theirs:
            assert any(all(np.array_equal(a, b) for a, b in zip(row, other, strict=True)) for other in mine)
