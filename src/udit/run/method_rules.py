"""What MeanFlow, adapters and CUDA graphs need of the other parts of a run: rules of ``rules``."""

from __future__ import annotations

from udit.data.config import DataInfo
from udit.run.config import Run


def second_time_is_trained(run: Run, seen: DataInfo) -> str | None:
    """A second time is for a process that has one, and the other way round."""
    if run.model.second_time == run.diffusion.two_times:
        return None
    if run.diffusion.two_times:
        return "model.second_time is false and MeanFlow learns an average between two times; leave second_time out"
    return (
        f"model.second_time is true and {run.diffusion.title} has one time, so that nothing would train the second; "
        "leave it out, or set diffusion.kind=mean-flow"
    )


def mean_flow_starts_at_pure_noise(run: Run, seen: DataInfo) -> str | None:
    """An average from pure noise needs a time that is finite there."""
    if not run.diffusion.two_times or run.model.time != "sigma":
        return None
    return (
        f"diffusion.kind is {run.diffusion.kind} and {run.model.family} gets the ratio of noise to signal, which is "
        "infinite at pure noise, where its one step begins; choose a model of another time"
    )


def forward_derivatives_have_no_dropout(run: Run, seen: DataInfo) -> str | None:
    """Only some samples of a batch are differentiated, and dropout's masks are of whole batches."""
    dropout = [key for key in type(run.model).model_fields if "drop" in key and getattr(run.model, key)]
    if not run.diffusion.two_times or not dropout:
        return None
    return (
        f"model.{dropout[0]} is {getattr(run.model, dropout[0]):g} and MeanFlow compares a network with its own "
        f"derivative, which other masks would change; set model.{dropout[0]}=0"
    )


def forward_derivatives_are_not_compiled(run: Run, seen: DataInfo) -> str | None:
    """torch refuses compiled functions within its function transforms."""
    if not run.diffusion.two_times or not run.training.compile:
        return None
    return (
        "training.compile is true and MeanFlow takes forward derivatives, which torch does not compile; set "
        "training.compile=false"
    )


def learned_guidance_needs_a_null_label(run: Run, seen: DataInfo) -> str | None:
    """Guidance that is learned compares with the null label's velocity, which dropped labels teach."""
    guidance = getattr(run.diffusion, "guidance", 1.0)
    if guidance == 1 or (run.model.null_label is not None and run.training.label_dropout):
        return None
    return (
        f"diffusion.guidance is {guidance:g} and the null label that it compares with is not trained (no classes, no "
        "null label, or training.label_dropout=0); set diffusion.guidance=1"
    )


def forward_derivatives_are_of_whole_weights(run: Run, seen: DataInfo) -> str | None:
    """FSDP gathers weights by hooks, which torch's function transforms do not pass through."""
    if not run.diffusion.two_times or run.training.parallel != "fsdp":
        return None
    return (
        "training.parallel is fsdp and MeanFlow takes forward derivatives, which need whole weights; set "
        "training.parallel=ddp"
    )


def adapter_is_of_whole_weights(run: Run, seen: DataInfo) -> str | None:
    """What an adapter trains is small; there is nothing to split."""
    if run.training.adapter is None or run.training.parallel != "fsdp":
        return None
    return (
        "training.parallel is fsdp, which splits weights and their optimiser state, and training.adapter trains few; "
        "set training.parallel=ddp"
    )


def adapter_has_no_other_average(run: Run, seen: DataInfo) -> str | None:
    """Post-hoc EMAs are of whole networks."""
    if run.training.adapter is None or run.training.posthoc_ema is None:
        return None
    return "training.posthoc_ema averages all weights and training.adapter trains few of them; leave posthoc_ema out"


def cuda_graphs_repeat_nothing_of_the_host(run: Run, seen: DataInfo) -> str | None:
    """A replay of a graph repeats what the GPU did, with the shapes and the numbers of the host that it had."""
    if not run.training.cuda_graphs:
        return None
    for key, value, why in (
        ("data.buckets", run.data.shapes[1:], "a graph has one shape"),
        ("data.condition", run.data.condition, "what the model sees beside the image is made by the host"),
        ("text", run.text, "captions are looked up by the host"),
        ("diffusion.kind=consistency", run.diffusion.kind == "consistency", "its times change during the training"),
        ("training.parallel=fsdp", run.training.parallel == "fsdp", "the exchange of weights is in no graph"),
    ):
        if value:
            return f"training.cuda_graphs is true with {key}: {why}; set training.cuda_graphs=false"
    return None
