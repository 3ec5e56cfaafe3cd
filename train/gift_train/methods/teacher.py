"""The frozen model a method distils from, and its features of the replay stream, computed once per task where that pays."""

from collections.abc import Iterable

import torch
from torch import Tensor

from gift_train.clip.model import Backbone, in_blocks
from gift_train.data.replay import ReplayBatch
from gift_train.distributed import SINGLE, Ranks
from gift_train.methods.texts import encode_captions, on_device


class Teacher:
    """A frozen backbone, its weights cast once. Features carry no gradient, L2-normalised, [B, D]; each rank computes its share of them."""

    def __init__(self, backbone: Backbone, ranks: Ranks = SINGLE) -> None:
        self.backbone = backbone
        self.ranks = ranks
        self._image_rows: dict[str, int] = {}
        self._text_rows: dict[str, int] = {}
        self._images = self._texts = torch.empty(0)
        backbone.keep_prepared()

    @torch.no_grad()
    def cache_features(self, replay_pass: Iterable[ReplayBatch], *, captions: bool = True) -> None:
        """Encode one pass over the replay images (and their captions) for good.

        Exact up to rounding, because the replay images meet a transform without randomness. The pass has a fixed order and
        batch size, so a resumed run computes the same bits again.
        """
        images, texts, num_images = [], [], 0
        for batch in replay_pass:
            images.append(self.encode_images(batch.images, len(batch.sample_keys)))
            self._image_rows.update({key: num_images + row for row, key in enumerate(batch.sample_keys)})
            num_images += len(batch.sample_keys)
            if captions:
                new = []
                for row, caption in enumerate(batch.captions):
                    if caption not in self._text_rows:
                        self._text_rows[caption] = len(self._text_rows)
                        new.append(row)
                if new:
                    texts.append(self.encode_texts(batch.tokens[new]))
        self._images = torch.cat(images)
        if captions:
            self._texts = torch.cat(texts)
        self.backbone.keep_prepared(keeps=False)  # it is hardly asked again

    @torch.no_grad()
    def encode_texts(self, tokens: Tensor) -> Tensor:
        """Features [N, D] of token rows [N, L]."""
        return in_blocks(lambda block: self.ranks.encode(self.backbone.encode_texts, block), tokens)

    @torch.no_grad()
    def encode_images(self, images: Tensor, num_images: int) -> Tensor:
        """Features [B, D] of a batch of so many images, of which this rank brings its share [B or share, 3, H, W]."""
        return self.ranks.all_gather(self.backbone.encode_images(images), num_images)

    @torch.no_grad()
    def image_features(self, batch: ReplayBatch) -> Tensor:
        """Features [B, D] of the batch's images, remembered or computed."""
        if self._image_rows:
            return self._images[_rows(self._image_rows, batch.sample_keys, self._images)]
        return self.encode_images(batch.images, len(batch.sample_keys))

    @torch.no_grad()
    def text_features(self, batch: ReplayBatch) -> Tensor:
        """Features [B, D] of the batch's captions, repeats included."""
        if self._text_rows:
            return self._texts[_rows(self._text_rows, batch.captions, self._texts)]
        return encode_captions(self.backbone, batch, self.ranks)


def _rows(table: dict[str, int], names: Iterable[str], like: Tensor) -> Tensor:
    return on_device([table[name] for name in names], like.device)
