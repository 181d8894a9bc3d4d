"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa's arithmetic and tensor names, trained on 100 languages."""

from typing import ClassVar

from spin_native.models.families.roberta import Roberta


class XlmRoberta(Roberta):
    model_type = "xlm-roberta"
    certain_names: ClassVar[tuple[str, ...]] = ()  # RoBERTa's, whose arithmetic and special tokens it has
