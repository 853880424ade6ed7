"""How large a source is, from its first documents: enough to say how often a run will read it."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from .files import DOCUMENTS, Piece
from .held_out import OpenSource
from .readers import Fault, lines_of
from .remote import open_file
from .source_rows import ExamRows, TextRows
from .tokenizer import DocumentTokenizer

SAMPLE_BYTES = 1 << 20


def tokens_per_pass(one: OpenSource, tokenize: DocumentTokenizer) -> float:
    """Tokens of one pass over a source: counted for questions, estimated for text from its held-out documents."""
    if isinstance(one.rows, ExamRows):
        return float(sum(len(ids) for ids in tokenize(one.rows.texts())))
    tokens = sum(len(ids) for ids in tokenize(one.held_out))
    return tokens / len(one.held_out) * number_of_rows(one.rows)


def number_of_rows(rows: TextRows) -> float:
    """Rows of a text source, from its first piece that has any and the size of the others."""
    counts = ((piece, rows_of_piece(rows, piece)) for piece in rows.pieces)
    first, count = next((found for found in counts if found[1]), (rows.pieces[0], 1))
    known = [size for piece in rows.pieces if (size := piece_size(piece)) is not None]
    size = piece_size(first)
    return count * (len(rows.pieces) if size is None or len(known) < len(rows.pieces) else sum(known) / size)


def piece_size(piece: Piece) -> int | None:
    """Bytes of a piece; None where only a server knows."""
    if piece.end is not None:
        return piece.end - piece.begin
    return None if "://" in piece.path else Path(piece.path).stat().st_size


def rows_of_piece(rows: TextRows, piece: Piece) -> float:
    """Rows of a piece: as its footer says, or as many as its size holds of its first lines."""
    name = piece.path.split("?")[0]
    if name.endswith(DOCUMENTS):
        return 1
    with open_file(rows.key, piece.path, rows.timeout) as file:
        if name.endswith(".parquet"):
            try:
                return float(pq.ParquetFile(file).metadata.num_rows)
            except (pa.ArrowException, OSError):  # reading it will count it as broken
                return 0
        size = file.seek(0, os.SEEK_END) if piece.end is None else piece.end - piece.begin
        file.seek(piece.begin)
        sample = file.read(min(SAMPLE_BYTES, size))  # a compressed one breaks off, which ends it with a fault
        found = lines_of(io.BytesIO(sample), replace(piece, begin=0, end=None))
        return sum(not isinstance(line, Fault) for line in found) * size / max(1, len(sample))
