"""Feeding shuffled batches of 4,096 rows of 512 float16, against other stores that hold the same rows.

Needs `pip install -e '.[bench]'`; a peer that is not installed is named as such. Each writes its rows as its own
documentation has it and is read the way it recommends for shuffled training: by lists of numbers where it can
(datasets, Lance, Zarr), through a buffer of 10,000 rows where it reads in order (WebDataset), in chunks (LitData).
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from feed import stored
from torch import Tensor

import forethought as ft

ROWS, WIDTH, BATCH = 50_000, 512, 4096
Feed = Callable[[], Iterator[Tensor]]


def measure() -> list[str]:
    """Compare epochs of feeding alone, with each peer in turn."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        features = stored(Path(folder, "ours"), ROWS, torch.float16)
        rows = np.array(features.numpy())
        for name, (package, make) in PEERS.items():
            if importlib.util.find_spec(package) is None:
                lines.append(f"{name}: not installed")
                continue
            feed = make(Path(folder, package), rows)
            found = ft.timing.alternate(
                lambda feed=feed: _epoch(feed), lambda: _epoch(lambda: _ours(features)), repeats=3
            )
            lines.append(f"{name} against ours: {found}")
    return lines


def _ours(features: ft.Features) -> Iterator[Tensor]:
    for values, _ in features.batches(BATCH, shuffle=True):
        yield values


def _epoch(feed: Feed) -> None:
    """Take every row once, as tensors of float16."""
    seen = 0
    for values in feed():
        assert values.dtype == torch.float16
        seen += len(values)
    assert seen == ROWS, seen


def _orders() -> Iterator[np.ndarray]:
    return iter(np.array_split(np.random.permutation(ROWS), range(BATCH, ROWS, BATCH)))


def _hugging_face(folder: Path, rows: np.ndarray) -> Feed:
    import datasets

    kind = datasets.Features({"x": datasets.Sequence(datasets.Value("float16"), length=WIDTH)})
    datasets.Dataset.from_dict({"x": rows}, features=kind).save_to_disk(folder)
    held = datasets.load_from_disk(folder).with_format("torch", dtype=torch.float16)
    return lambda: (held[at.tolist()]["x"] for at in _orders())


def _lance(folder: Path, rows: np.ndarray) -> Feed:
    import lance
    import pyarrow as pa

    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), WIDTH)
    lance.write_dataset(pa.table({"x": column}), str(folder))
    held = lance.dataset(str(folder))

    def feed() -> Iterator[Tensor]:
        for at in _orders():
            taken = held.take(at).column("x").combine_chunks()
            yield torch.from_numpy(np.array(taken.flatten()).reshape(-1, WIDTH))

    return feed


def _zarr(folder: Path, rows: np.ndarray) -> Feed:
    import zarr

    held = zarr.create_array(str(folder), shape=rows.shape, chunks=(1024, WIDTH), dtype=rows.dtype)
    held[:] = rows
    return lambda: (torch.from_numpy(np.asarray(held.oindex[np.sort(at)])) for at in _orders())


def _webdataset(folder: Path, rows: np.ndarray) -> Feed:
    import webdataset

    folder.mkdir()
    with webdataset.ShardWriter(f"{folder}/%04d.tar", maxcount=10_000, verbose=0) as sink:
        for at, row in enumerate(rows):
            sink.write({"__key__": f"{at:08d}", "npy": row})
    shards = sorted(map(str, folder.iterdir()))

    def feed() -> Iterator[Tensor]:
        read = webdataset.WebDataset(shards, shardshuffle=len(shards)).shuffle(10_000).decode().to_tuple("npy")
        for (values,) in read.batched(BATCH):
            yield torch.as_tensor(np.stack(list(values)))

    return feed


def _litdata(folder: Path, rows: np.ndarray) -> Feed:
    import litdata

    writer = litdata.streaming.Cache(str(folder), chunk_bytes="64MB")
    for at, row in enumerate(rows):
        writer[at] = torch.from_numpy(row)
    writer.done()
    writer.merge()
    held = litdata.StreamingDataset(str(folder), shuffle=True)
    return lambda: iter(litdata.StreamingDataLoader(held, batch_size=BATCH))


PEERS: dict[str, tuple[str, Callable[[Path, np.ndarray], Feed]]] = {
    "Hugging Face datasets": ("datasets", _hugging_face),
    "Lance": ("lance", _lance),
    "Zarr": ("zarr", _zarr),
    "WebDataset": ("webdataset", _webdataset),
    "LitData": ("litdata", _litdata),
}
