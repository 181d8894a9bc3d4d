"""What pooled features are: the address of one array, and what a whole store of them was made from."""

from dataclasses import dataclass, fields
from typing import Annotated, Literal, NamedTuple

import msgspec
from msgspec import Meta

from spin_native.disk import Count
from spin_native.features.pooling import Pooling

FORMAT = 1
FeatureDtype = Literal["float32", "float16"]
Site = Literal["activation", "hidden"]
Reads = Literal["texts", "prompts"]
Tokens = Annotated[int, Meta(ge=1, le=2**31)]


class FeatureKey(NamedTuple):
    """The address of one array of pooled features [row, width]: its site, pooling and layer."""

    site: str
    pooling: str
    layer: int

    @property
    def name(self) -> str:
        """In files: "activation.mean.3"."""
        return f"{self.site}.{self.pooling}.{self.layer}"


@dataclass(frozen=True)
class FeatureSpec:
    """What a store was made from; two stores are the same only if all of it is.

    model_fingerprint, tokenizer_fingerprint: sha256 of the weights that were used, and of all that can change token ids.
    depth: how many layers were run. dtype: of the stored features.
    rows_per_shard, max_tokens: batch sizes, which can change the last bits of a feature on some paths.
    widths: feature -> number of columns. columns: "all", or the sha256 of the list of neurons.
    reads: "texts"; or "prompts", in which a special token such as [MASK] is read as such.
    windows: (size, stride) of the windows that long texts are read in; None: they are cut at what the model holds.
    """

    model: str
    model_revision: str | None
    model_fingerprint: str
    model_dtype: str
    tokenizer_fingerprint: str
    depth: int
    dtype: FeatureDtype
    rows_per_shard: int
    max_tokens: int
    widths: dict[FeatureKey, int]
    columns: str = "all"
    reads: Reads = "texts"
    windows: tuple[int, int] | None = None

    def to_record(self) -> "StoreRecord":
        features = [StoredFeature(*feature, width) for feature, width in self.widths.items()]  # type: ignore[arg-type]
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return StoreRecord(format=FORMAT, **{**values, "max_tokens": int(self.max_tokens), "widths": features})

    @classmethod
    def from_record(cls, record: "StoreRecord") -> "FeatureSpec":
        """The specification that a manifest holds; ValueError for features that no extraction gives."""
        widths = {FeatureKey(f.site, f.pooling, f.layer): f.width for f in record.widths}
        if len(widths) < len(record.widths):
            raise ValueError("widths names a feature twice")
        if deep := [feature for feature in widths if feature.layer > record.depth - (feature.site == "activation")]:
            raise ValueError(f"widths names {deep[0].name}, but the depth is {record.depth}")
        return cls(**{field.name: getattr(record, field.name) for field in fields(cls)} | {"widths": widths})


class StoredFeature(msgspec.Struct, frozen=True):
    """One feature as a manifest names it."""

    site: Site
    pooling: Pooling | Literal["mask"]
    layer: Annotated[int, Meta(ge=0, le=10_000)]
    width: Annotated[int, Meta(ge=0, le=2**31)]


class StoreRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A store's manifest.json, its list of shards apart. See FeatureSpec for the fields."""

    format: int
    model: str
    model_revision: str | None
    model_fingerprint: str
    model_dtype: str
    tokenizer_fingerprint: str
    depth: Annotated[int, Meta(ge=1, le=10_000)]
    dtype: FeatureDtype
    rows_per_shard: Annotated[int, Meta(ge=1, le=2**40)]
    max_tokens: Count
    widths: list[StoredFeature]
    columns: str = "all"  # early stores do not say it
    reads: Reads = "texts"  # nor this
    windows: tuple[Tokens, Tokens] | None = None  # nor this


class StoreFormat(msgspec.Struct):
    """The one field that every format has."""

    format: int
