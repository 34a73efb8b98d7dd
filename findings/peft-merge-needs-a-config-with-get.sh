#!/usr/bin/env bash
# peft trains an adapter of any network, and cannot merge it where the network has a config of its own kind.
#
# Guess:  what get_peft_model adapts, trains and saves, merge_and_unload can merge: the network's attribute `config` is
#         none of peft's business, as long as the layers are torch's.
# Seen:   peft 0.21.2 asks model.config for .get("tie_word_embeddings") when it merges. A config that is no dict or
#         dataclass and has no to_dict() (a pydantic model, any class of one's own) is an AttributeError there, after the
#         training. Without an attribute `config`, or with to_dict(), the same network merges.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 peft==0.21.2 numpy==2.4.6
OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
from importlib.metadata import version

import torch
from peft import LoraConfig, get_peft_model


class Config:
    width = 8


class Listed(Config):
    def to_dict(self) -> dict[str, int]:
        return {"width": self.width}


class Network(torch.nn.Module):
    def __init__(self, config: Config | None) -> None:
        super().__init__()
        if config is not None:
            self.config = config
        self.layer = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def merged(config: Config | None) -> str:
    adapted = get_peft_model(Network(config), LoraConfig(r=2, target_modules=["layer"]))
    adapted(torch.ones(1, 8)).sum().backward()  # it computes and trains
    try:
        return type(adapted.merge_and_unload()).__name__
    except AttributeError as error:
        return f"AttributeError: {error}"


print("peft", version("peft"), "torch", torch.__version__)
found = {name: merged(config) for name, config in (("none", None), ("own class", Config()), ("to_dict", Listed()))}
for name, said in found.items():
    print(f"config: {name:10} -> {said}")
assert found["none"] == found["to_dict"] == "Network", "these merged"
assert found["own class"].startswith("AttributeError"), "it merges now"
PY
