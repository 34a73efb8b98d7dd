"""The studio without its page: what a place holds, what may be asked for, what is drawn, saved and told."""

from __future__ import annotations

import io
import json
import re
import socket
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image

import udit
from conftest import TINY, ErrorOf, perturb
from studio_page import tiny_run
from udit.assemble import System
from udit.data.codec_config import VAECodec
from udit.diffusion.config import FlowConfig, SamplingConfig
from udit.errors import RunError, UserError
from udit.images import read_settings
from udit.run.system import SystemConfig
from udit.studio import drawing, session
from udit.studio.chart import loss_chart
from udit.studio.command import command_of
from udit.studio.comparing import compare
from udit.studio.drawing import colours, draw, presets, sampling_of, seeds_in
from udit.studio.place import Choice, Place, Shelf, find
from udit.studio.serve import Gate, open_studio
from udit.studio.session import Shown, Studio, Wanted
from udit.studio.sheet import figures, problem
from udit.studio.watch import Log, Watch, duration
