"""A CSV or Parquet file that lists files and, beside them, what is known of each."""

import csv
import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from forethought.errors import DataError, EmptyDatasetError, MissingExtraError
from forethought.jobs.listing import Listing, is_known, kind_of

SUFFIXES = (".csv", ".tsv", ".parquet")
_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "audio")
_EMPTY = {"", "na", "n/a", "nan", "null", "none"}


def list_sheet(sheet: Path, paths_in: str | None = None) -> Listing:
    """List the files that a table names. Relative paths start at the table's own folder.

    Args:
        sheet: A .csv, .tsv or .parquet file; a CSV's first line names its columns.
        paths_in: The column of paths; by default the first of path, file, filename, file_name, filepath, image and
            audio that there is.

    Raises:
        DataError: it has no such column, a line has no path or too few cells, or it lists pictures and sounds.
        EmptyDatasetError: it has no lines.
        MissingExtraError: pyarrow is needed and not installed.
    """
    columns, lines = _parquet(sheet) if sheet.suffix.lower() == ".parquet" else _csv(sheet)
    name = _paths_column(sheet, list(columns), paths_in)
    cells = columns.pop(name)
    if not cells:
        raise EmptyDatasetError(f"Cannot read '{sheet}': expected lines below the names of the columns, got none.")
    empty = [line for line, cell in zip(lines, cells, strict=True) if is_missing(cell)]
    if empty:
        raise DataError(
            f"Cannot read '{sheet}': expected a path in column '{name}' of every line, got none in {len(empty)}, first "
            f"in line {empty[0]}. Fill it in, or remove the line"
        )
    folder = sheet.parent
    paths = [str(cell) if os.path.isabs(str(cell)) else str(folder / str(cell)) for cell in cells]
    kinds = {kind_of(path): (path, line) for path, line in zip(paths[::-1], lines[::-1], strict=True)}
    if len(kinds) > 1 or None in kinds:
        path, line = kinds.get(None) or list(kinds.values())[-1]
        raise DataError(
            f"Cannot read '{sheet}': expected pictures only or sounds only in column '{name}', got '{path}' in line "
            f"{line}{'' if is_known(path) else ', which is named like neither'}. Remove the line"
        )
    kind = next(iter(kinds))
    assert kind is not None
    return Listing(str(sheet), kind, paths, columns, lines=lines)


def is_missing(cell: Any) -> bool:
    """Say whether a cell holds nothing: empty, NaN, or a word for it."""
    if isinstance(cell, str):
        return cell.strip().lower() in _EMPTY
    return cell is None or (isinstance(cell, float) and cell != cell)


def _paths_column(sheet: Path, names: list[str], asked: str | None) -> str:
    if asked is not None and asked in names:
        return asked
    lower = {name.lower(): name for name in reversed(names)}
    found = None if asked is not None else next((lower[name] for name in _PATHS if name in lower), None)
    if found is not None:
        return found
    raise DataError(
        f"Cannot find the files that '{sheet}' lists: expected a column '{asked or 'path'}', got "
        f"{', '.join(names)}. Say which one holds the paths: --paths {names[0] if names else 'COLUMN'}"
    )


def _csv(sheet: Path) -> tuple[dict[str, list[Any]], list[int]]:
    with sheet.open(newline="", encoding="utf-8-sig", errors="strict") as file:
        try:
            head = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=head.count)
            return _columns(sheet, csv.reader(file, delimiter=delimiter, strict=True))
        except (UnicodeDecodeError, csv.Error) as err:
            raise DataError(
                f"Cannot read '{sheet}': expected a CSV in UTF-8, got {' '.join(str(err).split())}. Save it as that"
            ) from err


def _columns(sheet: Path, reader: Any) -> tuple[dict[str, list[Any]], list[int]]:
    rows: Iterable[list[str]] = reader
    names: list[str] | None = None
    cells: list[list[str]] = []
    lines: list[int] = []
    for row in rows:
        if not row:
            continue
        if names is None:
            names = [name.strip() for name in row]
            if len(set(names)) < len(names) or "" in names:
                raise DataError(
                    f"Cannot read '{sheet}': expected a name of its own for every column, got {names}. Rename them"
                )
            continue
        if len(row) != len(names):
            raise DataError(
                f"Cannot read '{sheet}': expected {len(names)} cells in every line, got {len(row)} in line "
                f"{reader.line_num}. Put cells that hold the delimiter into quotes"
            )
        cells.append([cell.strip() for cell in row])
        lines.append(reader.line_num)
    if names is None:
        raise EmptyDatasetError(f"Cannot read '{sheet}': expected a first line with the names of columns, got none.")
    return {name: [row[at] for row in cells] for at, name in enumerate(names)}, lines


def _parquet(sheet: Path) -> tuple[dict[str, list[Any]], list[int]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError as err:
        raise MissingExtraError(
            f"Cannot read '{sheet}': expected the package pyarrow, got none. pip install 'forethought[parquet]'"
        ) from err
    try:
        table = parquet.read_table(str(sheet))
    except (OSError, ValueError) as err:
        raise DataError(f"Cannot read '{sheet}': expected a Parquet file, got {' '.join(str(err).split())}.") from err
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return columns, list(range(1, table.num_rows + 1))
