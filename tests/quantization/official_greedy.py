"""python official_greedy.py FOLDER TOKENS < prompts > tokens: run in the environment of the tools.

Loads a quantized folder in transformers with whatever package its format has, in bfloat16 or as
the format wants, and continues each prompt greedily. In and out: JSON lists of token ids.
"""

import json
import sys
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def main(folder: str, count: int) -> None:
    torch.set_num_threads(1)
    prompts: list[list[int]] = json.load(sys.stdin)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.bfloat16
    )
    model.generation_config.eos_token_id = None  # on to the last of `count` tokens
    layer = model.model.layers[0].mlp.down_proj
    continued = []
    for ids in prompts:
        row = torch.tensor([ids])
        done = model.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=count,
            do_sample=False,
        )
        continued.append(done[0, len(ids) :].tolist())
    print(json.dumps({"layer": type(layer).__name__, "tokens": continued}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
