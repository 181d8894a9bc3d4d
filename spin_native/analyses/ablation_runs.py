"""Which neurons an ablation changes: those under study, and beside them random and the least important ones."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from spin_native.analyses.ablation import POOL_TOKENS, Ablation, How, NeuronValues
from spin_native.errors import InputError
from spin_native.given import is_number, is_whole
from spin_native.probes.controls import bottom, random_neurons

Array = np.ndarray
Which = Literal["chosen", "random", "least"]
Importance = Mapping[int, Float[Array, "neuron"]] | Float[Array, "layer neuron"]
INTERVAL = (2.5, 97.5)  # percentiles over draws


@dataclass(frozen=True)
class Run:
    """One run of the model with some neurons changed.

    which: the neurons under study, random ones, or the least important ones. draw: from 0. neurons: layer -> indices, as the
        checkpoint numbers them. edit: what changes them.
    """

    which: Which
    draw: int
    neurons: Mapping[int, Int[Array, "_"]]
    edit: Ablation


@dataclass(frozen=True)
class Plan:
    """Which neurons are changed, how, and what they are compared with. InputError for settings that cannot be used.

    widths: layer -> number of its neurons. importance: layer -> [neuron]; None: no least important neurons.
    """

    neurons: Mapping[int, Int[Array, "_"]]
    widths: Mapping[int, int]
    how: How
    importance: Importance | None
    noise: float
    n_draws: int
    seed: int

    def __post_init__(self) -> None:
        if not is_whole(self.n_draws) or self.n_draws < 1:
            raise InputError(f"n_draws is {self.n_draws!r}; expected a whole number, 1 or more")
        if not is_whole(self.seed) or self.seed < 0:
            raise InputError(f"seed is {self.seed!r}; expected a whole number, 0 or more")
        if not is_number(self.noise) or self.noise < 0:
            raise InputError(f"noise is {self.noise!r}; expected a standard deviation, 0 or more")
        if self.importance is not None:
            check_importance(self.importance, self.neurons, self.widths)

    def runs(self, values: NeuronValues, columns_of: Callable[[Any], Any] = dict) -> list[Run]:
        """The chosen neurons, `n_draws` sets of random ones, and the least important ones where importance is given.

        Of every layer as many as are chosen there. Random neurons are drawn from all neurons of a layer. Noise and resampling
        are random themselves: there the chosen and the least important neurons have `n_draws` draws, too.
        values: in the columns of the running model. columns_of: where neurons are among these.
        """
        sets: list[tuple[Which, int, Mapping[int, Int[Array, "_"]]]] = []
        n_repeated = self.n_draws if self.how in ("noise", "resample") else 1
        sets += [("chosen", draw, self.neurons) for draw in range(n_repeated)]
        sets += [("random", draw, self._random(draw)) for draw in range(self.n_draws)]
        if self.importance is not None:
            least = {
                layer: bottom(np.asarray(self.importance[layer], np.float64), len(chosen))
                for layer, chosen in self.neurons.items()
            }
            sets += [("least", draw, least) for draw in range(n_repeated)]
        return [
            Run(which, draw, neurons, values.edit(columns_of(neurons), self.how, self.noise, int(self.seed) + draw))
            for which, draw, neurons in sets
        ]

    def _random(self, draw: int) -> dict[int, Int[Array, "_"]]:
        """One set of random neurons; other draws and other layers have others."""
        return {
            layer: random_neurons(
                self.widths[layer], len(chosen), int(np.random.SeedSequence([self.seed, draw, layer]).generate_state(1)[0])
            )
            for layer, chosen in self.neurons.items()
        }

    def settings(self, values_from: Sequence[Any] | None) -> dict[str, Any]:
        """What a result's metadata says of these settings."""
        return {
            "how": self.how,
            "neurons": {str(layer): chosen.tolist() for layer, chosen in self.neurons.items()},
            "noise": float(self.noise) if self.how == "noise" else None,
            "n_values_from": len(values_from) if values_from is not None and self.how in ("mean", "resample") else None,
            "pool_tokens": POOL_TOKENS if self.how == "resample" else None,
            "n_draws": int(self.n_draws),
            "seed": int(self.seed),
            "interval": f"percentiles {INTERVAL[0]} and {INTERVAL[1]} of the draws",
        }


def check_importance(importance: Importance, layers: Iterable[int], widths: Mapping[int, int]) -> None:
    """InputError unless every one of some layers has one number per neuron."""
    for layer in layers:
        try:
            shape = np.shape(importance[layer])
        except (KeyError, IndexError, TypeError):
            raise InputError(f"importance: no numbers for layer {layer}; expected one for each of its neurons") from None
        if shape != (widths[layer],):
            raise InputError(
                f"importance: layer {layer} has {list(shape)} numbers; expected one for each of its {widths[layer]} neurons"
            )
