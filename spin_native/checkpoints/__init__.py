"""Published checkpoints -> models and tokenizers."""

from spin_native.checkpoints.hub import Location
from spin_native.checkpoints.load import Checkpoint, Dtype, load_model, load_tokenizer

__all__ = ["Checkpoint", "Dtype", "Location", "load_model", "load_tokenizer"]
