"""Loaded once by the server that forks the runs."""

import datasets  # noqa: F401
import torch
import transformers  # noqa: F401
import trl  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
from trl import SFTConfig, SFTTrainer  # noqa: F401

import versatune_plugin.hosts.trl.trainer  # noqa: F401

torch.set_num_threads(1)
