"""Reading parquet files row by row, with errors that name the file."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from zerosearch.errors import UserError


def read_parquet(path: Path, columns: Collection[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield row numbers (from 1) and rows, with those of the columns that the file has; none named: all.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            wanted = [name for name in file.schema_arrow.names if not columns or name in columns]
            number = 0
            for batch in file.iter_batches(columns=wanted):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}: check the path") from error
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is no readable parquet file: fetch or write it again") from error
