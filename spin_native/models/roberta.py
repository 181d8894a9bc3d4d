"""RoBERTa (Liu et al. 2019): BERT's blocks, with positions that start past the padding id."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spin_native.models.bert import BLOCK_RULES
from spin_native.models.config import ModelConfig
from spin_native.models.layers import Embedding, PostNormBlock
from spin_native.models.transformer import Transformer
from spin_native.models.weights import Copied, WeightTable
from spin_native.text.batch import TokenBatch


class Roberta(Transformer):
    def __init__(self, config: ModelConfig, depth: int | None = None) -> None:
        super().__init__(config, depth)
        self.word_embedding = Embedding(config.n_vocab, config.d_model)
        self.position_embedding = Embedding(config.n_positions, config.d_model)
        self.token_type_embedding = Embedding(config.n_token_types, config.d_model)
        self.embedding_norm = nn.LayerNorm(config.d_model, config.norm_eps)

    def block(self, index: int) -> PostNormBlock:
        return PostNormBlock(self.config)

    def embed(self, batch: TokenBatch) -> Float[Tensor, "token d_model"]:
        summed = (
            self.word_embedding(batch.ids)
            + self.position_embedding(self.positions(batch))
            + self.token_type_embedding.weight[0]  # single texts are all of type 0
        )
        return self.embedding_norm(summed)

    def positions(self, batch: TokenBatch) -> Tensor:
        """Positions start at pad_id + 1: fairseq kept the rows before it. A pad id inside a text is not counted."""
        counted = batch.ids.ne(self.config.first_position - 1)
        upto = counted.cumsum(0)
        before_row = (upto - counted.long())[batch.starts]
        within = upto - before_row[batch.row_of_token]  # 1, 2, 3 ... over the counted tokens of a row
        return self.config.first_position - 1 + torch.where(counted, within, 0)

    weights = WeightTable(
        prefix="roberta.",
        rules={
            "word_embedding.weight": Copied("embeddings.word_embeddings.weight"),
            "position_embedding.weight": Copied("embeddings.position_embeddings.weight"),
            "token_type_embedding.weight": Copied("embeddings.token_type_embeddings.weight"),
            "embedding_norm.weight": Copied("embeddings.LayerNorm.weight"),
            "embedding_norm.bias": Copied("embeddings.LayerNorm.bias"),
            **BLOCK_RULES,
        },
        ignorable=("embeddings.position_ids", "pooler.*", "lm_head.*", "classifier.*", "qa_outputs.*"),
    )
