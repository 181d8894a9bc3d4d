"""XLM-RoBERTa (Conneau et al. 2020): RoBERTa's arithmetic and tensor names, trained on 100 languages."""

from spin_native.models.families.roberta import Roberta


class XlmRoberta(Roberta):
    model_type = "xlm-roberta"
