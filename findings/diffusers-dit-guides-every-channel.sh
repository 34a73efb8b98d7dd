#!/usr/bin/env bash
# diffusers' DiTPipeline guides all four latent channels; the DiT paper's released samples guide three.
#
# Guess:  the same weights and guidance scale in DiTPipeline follow the release, whose guidance leaves the fourth latent
#         channel at its conditional prediction.
# Seen:   diffusers 0.42.1 guides every latent channel. Samples and scores of the two are not comparable at scales above 1.
#         (udit: guidance_channels=3 is the release's way, None is diffusers'.)
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install -q --disable-pip-version-check torch==2.13.0 diffusers==0.42.1 transformers==5.24.0 numpy==2.4.6
HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 "$place/venv/bin/python" - <<'PY'
from types import SimpleNamespace

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

torch.manual_seed(0)
vae = AutoencoderKL(in_channels=3, out_channels=3, latent_channels=4, norm_num_groups=2, block_out_channels=(4,))


class Recorder(DDIMScheduler):
    """Keeps the prediction that the pipeline hands it."""

    def step(self, model_output, t, sample, **rest):
        self.seen = model_output
        return super().step(model_output, t, sample, **rest)


class Fixed(DiTTransformer2DModel):
    """Channel c predicts label + 10 c, whatever the input."""

    def forward(self, hidden_states, timestep=None, class_labels=None):
        labels = class_labels.float()[:, None, None, None] + 10 * torch.arange(8.0)[None, :, None, None]
        return SimpleNamespace(sample=labels.expand(-1, -1, *hidden_states.shape[2:]))


dit = Fixed(
    num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
    num_embeds_ada_norm=1000,
)
scheduler = Recorder()
pipe = DiTPipeline(transformer=dit, vae=vae, scheduler=scheduler, id2label=None)
pipe.set_progress_bar_config(disable=True)
pipe(class_labels=[7], guidance_scale=2.0, num_inference_steps=1, output_type="np")
conditional, null = 7.0, 1000.0
guided = null + 2 * (conditional - null)
found = [float(scheduler.seen[0, c, 0, 0]) - 10 * c for c in range(4)]
print("diffusers", diffusers.__version__, "scale 2: channel minus its offset", found)
print("guided", guided, "conditional", conditional)
assert found == [guided] * 4, "DiTPipeline does not guide all channels any more"
PY
