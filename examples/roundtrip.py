"""Labels -> a `.vql` -> labels in a few calls, on a synthetic dump: 200 images, 8 epochs of noisy views, 50 classes.

python examples/roundtrip.py
"""

import tempfile
from pathlib import Path

import numpy as np

import vqlabel


def main() -> None:
    rng = np.random.default_rng(0)
    images, directions = rng.normal(size=(200, 8)), rng.normal(size=(8, 50))
    views = images + 0.3 * rng.normal(size=(8, 200, 8))  # [epochs, images, 8]: every view is the image with some noise
    with tempfile.TemporaryDirectory() as folder:
        dump, target = Path(folder) / "labels.npy", Path(folder) / "labels.vql"
        np.save(dump, (2 * views @ directions).astype(np.float16))

        codec, report = vqlabel.fit(dump, vqlabel.FitConfig(bits=24, epochs=4))
        vqlabel.pack(dump, target, codec=codec)
        labels, stats = vqlabel.open(target), vqlabel.stats(target, against=dump)

        print(
            f"codec: {report['config']['slots']} codes of {codec.code_bits[0]} bits, KL at T = 1 held out: {report['held_out']['kl_T1']:.3f}"
        )
        print(f"file: {stats['bytes']['total']:,} bytes for {len(labels):,} labels; the dump has {dump.stat().st_size:,}")
        print(f"first label of epoch 3, image 7: top class {int(labels[3 * 200 + 7].argmax())}")
        for batch in labels.batches(epoch=3):
            print(
                f"epoch {batch.place.epoch}, batch {batch.place.batch}: {len(batch.labels)} labels of images {batch.image[:3].tolist()} ..."
            )


if __name__ == "__main__":
    main()
