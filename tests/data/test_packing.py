"""Packing loses no token and goes on exactly from a saved state."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_pure.data.documents import ExamDocuments
from modeling_pure.data.packing import PackedRows


def packed(questions, tokenizer, row_length=48, window=16) -> PackedRows:
    return PackedRows(ExamDocuments(questions, seed=0), tokenizer, row_length, seed=0, window=window)


def test_every_token_of_every_document_comes_out_once(questions, tokenizer):
    rows = packed(questions, tokenizer)
    tokens = np.concatenate([rows.next_row() for _ in range(60)])
    ends = np.flatnonzero(tokens == tokenizer.eos_token_id)
    pieces = np.split(tokens, ends + 1)[:-1]
    texts = ExamDocuments(questions, seed=0).read(len(pieces) + 16)
    # Order changes within a window alone, so whole windows hold the same documents.
    whole = len(pieces) // 16 * 16
    assert whole >= 32
    assert sorted(tokenizer.decode(piece[:-1]) for piece in pieces[:whole]) == sorted(texts[:whole])


def test_rows_have_the_length_and_type_that_is_asked_for(questions, tokenizer):
    row = packed(questions, tokenizer, row_length=37).next_row()
    assert row.shape == (37,) and row.dtype == np.int32


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 60), row_length=st.sampled_from([7, 48, 200]), window=st.sampled_from([1, 16]))
def test_rows_go_on_from_a_saved_state(questions, tokenizer, cut, row_length, window):
    rows = packed(questions, tokenizer, row_length, window)
    straight = [rows.next_row() for _ in range(cut + 10)]
    stopped = packed(questions, tokenizer, row_length, window)
    for _ in range(cut):
        stopped.next_row()
    resumed = packed(questions, tokenizer, row_length, window)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    np.testing.assert_array_equal([resumed.next_row() for _ in range(10)], straight[cut:])


def test_a_long_document_fills_several_rows(tokenizer):
    class OneLong:
        def read(self, count):
            return ["fever cough rash " * 200]

        def state_dict(self):
            return {"passes": 0, "index": 0}

    rows = PackedRows(OneLong(), tokenizer, 64, seed=0, window=1)
    text = tokenizer.decode(np.concatenate([rows.next_row() for _ in range(4)]))
    assert ("fever cough rash " * 200).startswith(text)


@pytest.mark.parametrize("window", [1, 4, 64])
def test_windows_change_order_and_nothing_else(questions, tokenizer, window):
    rows = packed(questions, tokenizer, window=window)
    first = rows.next_row()
    np.testing.assert_array_equal(first, packed(questions, tokenizer, window=window).next_row())
