"""The tokenizer of a checkpoint, exactly as its `tokenizer.json` has it."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import processors
from transformers import PreTrainedTokenizerFast


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """Of a folder in Hugging Face's form, for TRL's `processing_class`.

    Not AutoTokenizer: from transformers 5 on that one builds the tokenizer that is usual for the kind of model around
    the file's vocabulary, and so splits words in another way than taiji, whose tokenizers are trained with its models.
    A checkpoint of taiji names no token of the end beside the tokenizer; it is the one at which the model stops.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, padding_side="left")
    # A post-processor may put a token before every text (Llama's do); taiji reads prompts as they are, in training and serving.
    if tokenizer("a")["input_ids"] != tokenizer("a", add_special_tokens=False)["input_ids"]:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    if tokenizer.eos_token is None:
        ends = _eos_token_ids(folder)
        if not ends:
            raise ValueError(f"{folder}: neither tokenizer nor config name an end-of-sequence token; add eos_token_id")
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends[0])
    return tokenizer


def _eos_token_ids(folder: str | Path) -> list[int]:
    """Where the model stops, by its own files in the order in which transformers believes them."""
    for file in (Path(folder, "generation_config.json"), Path(folder, "config.json")):
        ends = json.loads(file.read_text()).get("eos_token_id") if file.exists() else None
        if ends is not None:
            return ends if isinstance(ends, list) else [ends]
    return []
