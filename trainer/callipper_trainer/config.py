"""What a training run can be told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

POI_TEMPLATE = "{category}"  # bare, as people ask; "A place of ..." around it costs them 8 points of AUC

# Where the paper's settings are not the usual ones; its contrast has no names and weighs all pairs the same.
PAPERS: dict[str, Any] = {
    "hidden": 256,
    "blocks": 4,
    "name_weight": 0.0,
    "balance": 0.0,
    "batch_size": 1024,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
}


@dataclass(frozen=True)
class TrainConfig:
    """The model and its optimisation; of() gives those of an encoder."""

    # location encoder: Space2Vec grid encoding, beside it what lies around (contextual), then a residual network
    encoder: str = "contextual"  # or coordinate
    frequencies: int = 32
    wavelength_min_m: float = 100.0  # divisors of the metres, so a full period is 2 pi times as long
    wavelength_max_m: float = 10_000.0
    hidden: int = 192
    blocks: int = 2
    dropout: float = 0.0  # masks cost a tenth of a step on a CPU; the best epoch is kept in any case
    context_weight: float = 8.0  # of telling what lies around, beside the contrast with texts (contextual)
    name_weight: float = 0.15  # of the contrast with POIs' names, beside that with their texts
    balance: float = 0.25  # a pair weighs as the number of rows with its text to minus this; 0: all pairs the same
    # optimisation
    epochs: int | None = None  # None: 6, or more where that makes fewer than `min_steps` steps
    min_steps: int = 300
    batch_size: int = 512  # at most; small sources take an eighth of their POIs
    learning_rate: float = 2e-3  # peak of the one-cycle schedule
    weight_decay: float = 0.02
    initial_temperature: float = 0.07
    logit_scale_max: float = 100.0
    validation_share: float = 0.1
    seed: int = 42
    device: str = "auto"  # auto, cpu, cuda, cuda:1, ...
    precision: str = "auto"  # bf16 on a GPU that has it, else float32; or one of the two

    @classmethod
    def of(cls, encoder: str, **options: Any) -> TrainConfig:
        """The usual settings of an encoder but for options that are not None; those of `coordinate` are the paper's."""
        usual = PAPERS if encoder == "coordinate" else {}
        return cls(encoder=encoder, **(usual | {name: value for name, value in options.items() if value is not None}))

    def to_dict(self) -> dict[str, Any]:
        """As JSON for provenance and checkpoints."""
        return asdict(self)

    def batch_for(self, count: int) -> int:
        """Rows a batch for so many training POIs: at least 8 batches an epoch, so that small sources are shuffled too."""
        return max(2, min(self.batch_size, count // 8))

    def epochs_for(self, count: int) -> int:
        """Epochs for so many training POIs."""
        if self.epochs is not None:
            return self.epochs
        steps_per_epoch = max(1, count // self.batch_for(count))
        return max(6, -(-self.min_steps // steps_per_epoch))
