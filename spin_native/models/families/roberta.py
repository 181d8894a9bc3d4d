"""RoBERTa (Liu et al. 2019): BERT's arithmetic, with positions that start after the padding id."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from spin_native.models.config import ConfigFile, ModelConfig
from spin_native.models.families.bert import Bert, BertConfig, BertEmbedding, post_norm_block
from spin_native.models.heads import HeadTable, MaskedHead
from spin_native.models.layers import gelu
from spin_native.models.transformer import Transformer
from spin_native.text.batch import TokenBatch


@dataclass(frozen=True)
class RobertaConfig(BertConfig):
    pad_id: int

    @property
    def max_tokens(self) -> int:
        """514 position rows hold 512 tokens: the rows up to the padding id are never used."""
        return self.n_positions - self.pad_id - 1


def positions_after(pad_id: int, batch: TokenBatch) -> Int[Tensor, "token"]:
    """Positions start at pad_id + 1: fairseq kept the rows before it. A padding id inside a text has position pad_id."""
    is_counted = batch.ids.ne(pad_id)
    total = is_counted.cumsum(0)
    total_before_row = (total - is_counted.long())[batch.starts]
    within_row = total - total_before_row[batch.row_of_token]  # 1, 2, 3 ... over the counted tokens of a row
    return pad_id + torch.where(is_counted, within_row, 0)


class RobertaEmbedding(BertEmbedding):
    def __init__(self, config: RobertaConfig) -> None:
        super().__init__(config)
        self.pad_id = config.pad_id

    def positions(self, batch: TokenBatch) -> Int[Tensor, "token"]:
        return positions_after(self.pad_id, batch)


class Roberta(Transformer):
    model_type = "roberta"

    def __init__(self, config: RobertaConfig, depth: int | None = None) -> None:
        super().__init__(config, depth, RobertaEmbedding(config), lambda index: post_norm_block(config, index))

    @classmethod
    def read_config(cls, file: ConfigFile) -> RobertaConfig:
        bert = Bert.read_config(file)
        pad_id = file.pad_id_before_positions(bert.n_positions)
        return RobertaConfig(**{**vars(bert), "family": cls.model_type, "pad_id": pad_id})

    @classmethod
    def new_head(cls, config: ModelConfig) -> MaskedHead:
        return MaskedHead(config, gelu)  # whatever the blocks use

    weights = replace(Bert.weights, prefix="roberta.", heads=("pooler.*", "lm_head.*", "classifier.*", "qa_outputs.*"))
    head_weights = HeadTable(
        {
            "dense.{part}": ("lm_head.dense.{part}",),
            "norm.{part}": ("lm_head.layer_norm.{part}",),
            "words.weight": ("lm_head.decoder.weight",),
            "words.bias": ("lm_head.decoder.bias", "lm_head.bias"),
        },
        embedding="embeddings.word_embeddings.weight",
    )
