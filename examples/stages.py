"""The stages as functions, with a client of one's own: for notebooks and other pipelines.

python examples/stages.py IMAGES OUT [LAYER [WEIGHTS]]
"""

import sys

from distributed import Client, LocalCluster

from dtl import config
from dtl.evaluation import scoring
from dtl.features import featurization, splitting
from dtl.features.values import ExtractionSpec
from dtl.images import listing
from dtl.training import trainer
from dtl.training.spec import TrainingSpec


def main(
    images: str, out: str, client: Client, layer: str = "fc2", weights: str = "imagenet"
) -> None:
    """Featurize, train and evaluate, on a client's workers."""
    c = config.build(
        {
            "images": {"url": images},
            "features": {"layers": [layer], "weights": weights, "chunk_images": 32},
        }
    )
    listed = listing.list_images(c.images, c.seed)
    spec = ExtractionSpec(c.features, c.images, c.seed)
    store = featurization.featurize(f"{out}/features.zarr", listed, spec, client)
    splitting.split_images(store, c.split, c.seed)
    trained = trainer.train(TrainingSpec(store, c.train, layer, c.seed), client)
    head, history = trained.head, trained.history
    scores = scoring.evaluate(store, head, client)

    print(f"{len(listed)} images, {len(history)} rounds, last loss {history[-1].loss:.3f}")
    print({name: round(s.accuracy, 3) for name, s in scores.scores.items()})
    chunk = store.read(layer, 0)  # (rows of a chunk, n_features)
    print("first image:", head.class_names[head.logits(chunk[:1]).argmax()])


if __name__ == "__main__":
    with LocalCluster(n_workers=1) as cluster, Client(cluster) as client:
        main(sys.argv[1], sys.argv[2], client, *sys.argv[3:])
