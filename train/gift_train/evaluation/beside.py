"""What is evaluated beside an order's tasks and told apart: extra datasets by their own classes, image-caption pairs by retrieval.

Looked up and listed without a model, then loaded for one. All of it is checked before any training.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gift_shared.errors import ConfigError
from gift_shared.manifests import Manifests, TaskManifest
from gift_train.clip.model import Backbone
from gift_train.data.loader import HERE, Loading
from gift_train.data.pairs.listing import Pairs, open_pairs
from gift_train.data.pixel_cache import CACHE_BYTES, cached
from gift_train.data.tasks import TaskImages, load_test
from gift_train.data.transforms import ImageTransforms
from gift_train.distributed import SINGLE, Ranks
from gift_train.evaluation.cache import EvaluationCache
from gift_train.evaluation.evaluate import MayStop, Scoring, evaluate_readings
from gift_train.evaluation.retrieval import Recalls, RetrievalSet, evaluate_retrieval
from gift_train.options import BesideOptions


@dataclass(frozen=True, kw_only=True)
class BesideScores:
    """Accuracy in percent by dataset, recalls by the name of the pairs."""

    also: Mapping[str, float]
    retrieval: Mapping[str, Recalls]


@dataclass(frozen=True, kw_only=True)
class Beside:
    """Datasets and pairs, ready for one model; both may be empty."""

    datasets: Mapping[str, tuple[TaskManifest, TaskImages]]
    pairs: Sequence[RetrievalSet]

    def __bool__(self) -> bool:
        return bool(self.datasets or self.pairs)

    def evaluate(
        self,
        method: Scoring,
        student: Backbone,
        *,
        batch_size: int,
        loading: Loading = HERE,
        cache: EvaluationCache | None = None,
        ranks: Ranks = SINGLE,
        description: str = "evaluate",
        before_dataset: MayStop = lambda: None,
        before_batch: MayStop = lambda: None,
    ) -> BesideScores:
        """Each dataset by the method's own reading of its weights, among the dataset's own classes; the pairs by the network as it is.

        Arguments as of `evaluate_readings`.
        """
        also: Mapping[str, float] = {}
        if self.datasets:
            readings = evaluate_readings(
                method,
                student,
                self.datasets,
                batch_size=batch_size,
                loading=loading,
                cache=cache,
                ranks=ranks,
                description=f"{description}, beside the order",
                before_dataset=before_dataset,
                before_batch=before_batch,
            )
            also = readings[""]
        recalls = evaluate_retrieval(
            student,
            self.pairs,
            batch_size=batch_size,
            loading=loading,
            cache=cache,
            ranks=ranks,
            description=f"{description}, retrieval",
            before_set=before_dataset,
            before_block=before_batch,
        )
        return BesideScores(also=also, retrieval=recalls)


@dataclass(frozen=True, kw_only=True)
class BesideListing:
    """What the options name, looked up: the datasets' manifests, and the pairs as they lie on disk."""

    manifests: Mapping[str, TaskManifest]
    pairs: Sequence[Pairs]

    def load(self, data_root: Path, transforms: ImageTransforms, student: Backbone, cache_bytes: int = CACHE_BYTES) -> Beside:
        """Open the test images and tokenise the captions, telling those that are cut. Raises DataError, naming what is missing."""
        tests = {name: (manifest, load_test(manifest, data_root, transforms, cache_bytes)) for name, manifest in self.manifests.items()}
        prompts = [prompt for manifest in self.manifests.values() for prompt in manifest.prompts]
        student.warn_of_long([*prompts, *(caption for pairs in self.pairs for caption in pairs.captions)])
        return Beside(datasets=tests, pairs=[_prepared(pairs, transforms, student, cache_bytes) for pairs in self.pairs])


def list_beside(options: BesideOptions, manifests: Manifests, tasks: Sequence[str]) -> BesideListing:
    """Look up what is to be evaluated beside `tasks`. No image is read but the first of each set of pairs.

    Raises: ManifestError for a dataset that is none, ConfigError for one that is evaluated anyway or stands twice, DataError for pairs
    that are not whole.
    """
    names = list(options.also_evaluate or ())
    chosen: dict[str, TaskManifest] = {}
    for name in names:
        manifest = manifests.task(name)
        if manifest.name in chosen or manifest.name in tasks:
            why = "stands twice" if manifest.name in chosen else "is evaluated anyway, as one of the order or of those named"
            raise ConfigError(f"--also-evaluate {name} {why}. Leave it out.")
        chosen[manifest.name] = manifest
    pairs = [open_pairs(path) for path in options.retrieval or ()]
    for place, one in enumerate(pairs):
        if one.name in [other.name for other in pairs[:place]]:
            raise ConfigError(f"--retrieval: two sets of pairs are called {one.name}. Rename a folder or file.")
    return BesideListing(manifests=chosen, pairs=pairs)


def _prepared(pairs: Pairs, transforms: ImageTransforms, student: Backbone, cache_bytes: int) -> RetrievalSet:
    images = TaskImages(pairs.images, cached(pairs.images.image, transforms.evaluation, len(pairs.images), cache_bytes))
    return RetrievalSet.of(pairs.name, images, pairs.captions, pairs.images_of, student)
