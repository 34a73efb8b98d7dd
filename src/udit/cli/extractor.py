"""Which features a command scores by."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from udit.errors import UserError

if TYPE_CHECKING:
    from udit.evaluation.fidelity import Extractor

FeaturesName = Literal["judge", "inception", "clip", "dinov2"]


def extractor_of(features: FeaturesName, weights_file: Path | None, device: str) -> Extractor:
    """The extractor of a name.

    Args:
        features: judge needs the file of one that `udit eval RUN` trained.
        weights_file: safetensors, or a pickle that is read as tensors alone; None downloads a published network.
        device: where it runs.

    Raises:
        UserError: no such weights.
    """
    if features == "judge":
        from udit.evaluation.features import Judge, JudgeFeatures

        if weights_file is None:
            raise UserError(
                "judge features need the classifier of a run: --weights-file RUN/evaluation/judge.safetensors; or take "
                "--features inception"
            )
        return JudgeFeatures(Judge.load(weights_file))
    from udit.convert import read_published
    from udit.evaluation.fidelity import Fidelity

    return Fidelity(features, None if weights_file is None else read_published(weights_file), device)
