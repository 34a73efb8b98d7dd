#!/usr/bin/env bash
# The last of a language model's hidden states is behind its final norm; all others are what a layer returned.
#
# Guess:  with output_hidden_states=True, hidden_states[i] is what layer i of L returned, for every i from 1 to L.
# Seen:   transformers 5.24.0, Llama: true for i below L. hidden_states[L] has passed the model's final RMSNorm, so its
#         scale is another one: of SmolLM2-135M the first token's state has a norm of 25,000 in the middle layers and of
#         40 in the last. What reads several layers side by side has to normalise them itself.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.14.1 transformers==5.24.0
OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
model = LlamaForCausalLM(LlamaConfig(vocab_size=11, num_hidden_layers=3, **sizes)).eval()
returned = []
for layer in model.model.layers:
    layer.register_forward_hook(lambda _m, _x, out: returned.append(out[0] if isinstance(out, tuple) else out))
with torch.no_grad():
    states = model(torch.tensor([[1, 2, 3]]), output_hidden_states=True).hidden_states
    normed = model.model.norm(returned[-1])
same = [torch.equal(state, out) for state, out in zip(states[1:], returned)]
print("transformers", transformers.__version__, "hidden_states[i] is what layer i returned:", same)
assert same == [True, True, False], "the last hidden state is no longer another one than the rest"
assert torch.equal(states[-1], normed)
PY
