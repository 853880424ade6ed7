"""How large a source is, from its first documents: enough to say how often a run will read it."""

import io
import os
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq

from .files import DOCUMENTS, Shard, lower_name, shard_size
from .held_out import OpenSource
from .readers import Fault, texts_of
from .remote import open_file
from .source_rows import ExamRows, TextRows
from .tokenizer import DocumentTokenizer

SAMPLE_BYTES, SAMPLE_PIECES = 1 << 20, 16


def tokens_per_epoch(one: OpenSource, tokenize: DocumentTokenizer) -> float:
    """Tokens of one pass over a source: counted for questions, estimated for text from its held-out documents."""
    if isinstance(one.rows, ExamRows):
        return float(sum(len(ids) for ids in tokenize(one.rows.texts())))
    tokens = sum(len(ids) for ids in tokenize(one.held_out))
    return tokens / len(one.held_out) * number_of_rows(one.rows)


def number_of_rows(rows: TextRows) -> float:
    """Rows with text of a text source, from a few of its shards and the size of all.

    Servers are asked for one shard that has any: the sizes of their files are not known before.
    """
    sizes = [shard_size(shard) for shard in rows.shards]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes):
        sample = range(0, len(sizes), -(-len(sizes) // SAMPLE_PIECES))
        return sum(rows_of_shard(rows, rows.shards[i]) for i in sample) / sum(known[i] for i in sample) * sum(known)
    counts = (rows_of_shard(rows, shard) for shard in rows.shards)
    return next((count for count in counts if count), 1.0) * len(sizes)


def rows_of_shard(rows: TextRows, shard: Shard) -> float:
    """Rows with text of a shard: as its footer says, or as many as its size holds of its first ones."""
    name = lower_name(shard.path)
    if name.endswith(DOCUMENTS):
        return 1
    with open_file(rows.key, shard.path, rows.timeout) as file:
        if name.endswith(".parquet"):
            try:
                return float(filled_rows(pq.ParquetFile(file).metadata, rows.column))
            except (pa.ArrowException, OSError):  # reading it will count it as broken
                return 0
        size = file.seek(0, os.SEEK_END) if shard.end is None else shard.end - shard.begin
        file.seek(shard.begin)
        sample = file.read(min(SAMPLE_BYTES, size))  # the last row breaks off, which makes it a fault
        cut = replace(shard, begin=0, end=None)
        found = texts_of(io.BufferedReader(io.BytesIO(sample)), cut, rows.column)
        return sum(not isinstance(text, Fault) for text in found) * size / max(1, len(sample))


def filled_rows(metadata: pq.FileMetaData, column: str) -> int:
    """Rows of a parquet file that are not null in a column, as far as its footer knows."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    nulls = 0
    for group in groups:
        columns = [group.column(i) for i in range(group.num_columns)]
        counts = [one.statistics.null_count for one in columns if one.path_in_schema == column and one.statistics]
        nulls += sum(count or 0 for count in counts)
    return int(metadata.num_rows) - nulls
