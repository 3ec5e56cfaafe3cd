"""A small vocabulary cut out of CLIP's: the first 512 merges and those that the words of our captions use.

The words of our captions are split exactly as the full vocabulary splits them, because at every step their best merge is in the
subset; other text still encodes, in smaller pieces. This saves the 12.6 MB embedding table that 49,408 tokens would need.
open_clip and transformers number tokens alike (bytes, bytes with word end, merges, start, end); the end token has the highest id.
"""

from __future__ import annotations

import gzip
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from captions import all_captions

CONTEXT_LENGTH = 16
MERGES_FILE = "bpe_merges.txt.gz"
_FIRST_MERGES = 512
_MORE_WORDS = """a an the of on in and with photo picture image drawing sketch sign icon symbol logo pictogram art style background
small big large little bright dark red blue green purple black white yellow pink light orange grey brown painted printed handwritten
shape letter digit number flag texture pattern object thing animal line outline bad good many close up toy old new"""


@dataclass(frozen=True)
class Vocabulary:
    merges: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        return 512 + len(self.merges) + 2

    def token_ids(self) -> dict[str, int]:
        """In transformers' spelling of the two special tokens."""
        from open_clip.tokenizer import bytes_to_unicode

        letters = list(bytes_to_unicode().values())
        tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in self.merges)]
        return {token: number for number, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}

    def write_open_clip(self, path: Path) -> None:
        # open_clip skips the first line and would take an empty last line for a merge. mtime=0 keeps the bytes reproducible.
        text = "\n".join(["#version: 0.2", *(" ".join(merge) for merge in self.merges)])
        path.write_bytes(gzip.compress(text.encode(), mtime=0))

    def transformers_tokenizer(self, folder: Path):
        """Write vocab.json and merges.txt, which every version of transformers reads, and return the tokenizer."""
        from transformers import CLIPTokenizer

        folder.mkdir(parents=True, exist_ok=True)
        (folder / "vocab.json").write_text(json.dumps(self.token_ids(), ensure_ascii=False) + "\n")
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in self.merges)]) + "\n")
        tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=CONTEXT_LENGTH)
        tokenizer.save_pretrained(folder)
        return tokenizer

    def open_clip_tokenizer(self, path: Path):
        from open_clip.tokenizer import SimpleTokenizer

        self.write_open_clip(path)
        return SimpleTokenizer(bpe_path=str(path), context_length=CONTEXT_LENGTH)


def build_vocabulary() -> Vocabulary:
    from open_clip.tokenizer import SimpleTokenizer

    full = SimpleTokenizer()
    ranked = sorted(full.bpe_ranks, key=full.bpe_ranks.__getitem__)
    kept = set(range(_FIRST_MERGES))
    words = {piece for text in [*all_captions(), _MORE_WORDS] for piece in full.pat.findall(text.lower())}
    for word in sorted(words):
        kept |= _merges_used(full, "".join(full.byte_encoder[byte] for byte in word.encode()))
    return Vocabulary(tuple(ranked[rank] for rank in sorted(kept)))


def _merges_used(full, word: str) -> set[int]:
    """Ranks of the merges that byte-pair encoding applies to a word, in CLIP's greedy order."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    used = set()
    while len(pieces) > 1:
        rank, pair = min((full.bpe_ranks.get(pair, float("inf")), pair) for pair in itertools.pairwise(pieces))
        if rank == float("inf"):
            break
        used.add(rank)
        merged, index = [], 0
        while index < len(pieces):
            if tuple(pieces[index : index + 2]) == pair:
                merged.append("".join(pair))
                index += 2
            else:
                merged.append(pieces[index])
                index += 1
        pieces = merged
    return used
