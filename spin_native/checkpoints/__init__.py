"""Published checkpoints -> models and tokenizers."""

from spin_native.checkpoints.hub import Location
from spin_native.checkpoints.load import Checkpoint, load_model, load_tokenizer

__all__ = ["Checkpoint", "Location", "load_model", "load_tokenizer"]
