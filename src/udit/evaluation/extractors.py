"""The extractor of a name, as commands and jobs ask for it."""

from __future__ import annotations

from pathlib import Path

from udit.errors import UserError
from udit.evaluation import FeaturesName
from udit.evaluation.fidelity import Extractor


def load_extractor(features: FeaturesName, weights_file: Path | None = None, device: str = "cpu") -> Extractor:
    """Loads an extractor.

    Args:
        features: judge, inception, clip or dinov2; judge needs the weights that `udit eval RUN` trained.
        weights_file: safetensors, or a pickle of which only tensors are read; None downloads a published network.
        device: where it runs.

    Raises:
        UserError: the weights are missing or of another network.
    """
    if features == "judge":
        from udit.evaluation.judge import Judge, JudgeFeatures

        if weights_file is None:
            raise UserError(
                "judge features need the classifier of a run: --weights-file RUN/evaluation/judge.safetensors; or take "
                "--features inception"
            )
        return JudgeFeatures(Judge.load(weights_file))
    from udit.convert.states import read_published
    from udit.evaluation.fidelity import Fidelity

    return Fidelity(features, None if weights_file is None else read_published(weights_file).taken.tensors, device)
