"""Whether a caption's encoding depends on the captions it is encoded with: python benchmarks/texts_together.py [--device cuda]

Stage 1 encodes each caption alone. Encoded together they would be faster, if a row of the text encoder's output did not depend on how
many rows there are: an image must not depend on what else is in its batch. Here these are the first layers of Stable Diffusion v1.5's text
encoder (CLIP ViT-L/14's) with random weights; every text is encoded alone, and in batches of several sizes, in each dtype.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import torch
from measure import Finding, report
from transformers import CLIPTextConfig, CLIPTextModel

NUM_TEXTS = 8
NUM_LAYERS = 2  # of twelve: what differs after two does not come together again
BATCH_SIZES = (2, 4, 8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=NUM_LAYERS, num_attention_heads=12)
    encoder, texts = CLIPTextModel(config).eval().to(arguments.device), torch.randint(49_000, (NUM_TEXTS, 77), device=arguments.device)
    findings: list[Finding] = []
    details: dict[str, Any] = {"device": arguments.device}
    for num_threads in (1, 2) if arguments.device == "cpu" else (1,):
        torch.set_num_threads(num_threads)
        for dtype in DTYPES:
            where = f"{str(dtype).removeprefix('torch.')}, {num_threads} threads" if arguments.device == "cpu" else str(dtype)
            findings += compared(encoder.to(dtype), texts, where, details)
    report("texts_together", findings, details, device=arguments.device)


@torch.inference_mode()
def compared(encoder: Any, texts: torch.Tensor, where: str, details: dict[str, Any]) -> Iterator[Finding]:
    """For each batch size the share of texts whose encoding is the same to the last bit as alone."""
    alone = torch.cat([encoder(text[None])[0] for text in texts])
    for size in BATCH_SIZES:
        together = torch.cat([encoder(batch)[0] for batch in texts.split(size)])
        differences = (together.float() - alone.float()).abs().flatten(1).amax(dim=1)
        details[f"{where}, {size} together"] = {"largest difference": float(differences.max())}
        yield Finding(what=f"{where}, {size} together: as alone", value=100 * float((differences == 0).float().mean()), unit="%")


if __name__ == "__main__":
    main()
