"""Texts to ragged token batches."""

from spin_native.text.batch import TokenBatch
from spin_native.text.tokenizer import Tokenizer, TruncationWarning

__all__ = ["TokenBatch", "Tokenizer", "TruncationWarning"]
