"""labels.pt -> label batches and back: row i is the label of image i."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vqlabel
from vqlabel import FitConfig
from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import About, LabelBatch, Place, open_labels, writing

NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}


def draw(n: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) * 5).to(dtype)


def saved(path: Path, item: Any) -> Path:
    torch.save(item, path)
    return path


def write(out: Path, batches: list[LabelBatch], target: str = "tensor", **about: Any) -> None:
    defaults = {"layout": "x", "classes": 5, "domain": "logits", "dtype": "F32", "order": "explicit"}
    with writing(out, About(**{**defaults, **about}), target) as writer:
        for batch in batches:
            writer.add(batch)


def batch_of(image: list[int], number: int = 0, **columns: Any) -> LabelBatch:
    labels = np.array(image, np.float32)[:, None] + np.linspace(-1, 1, 5, dtype=np.float32)
    return LabelBatch(labels=labels, place=Place(0, number), image=np.array(image, np.int64), **columns)


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("dtype", NAMES)
def test_a_tensor_is_read_row_by_row(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    labels = draw(9000, dtype)
    source = open_labels(saved(tmp_path / f"labels{suffix}", labels))
    attributes = source.layout, source.classes, source.domain, source.dtype, source.order, source.support
    assert attributes == ("tensor", 5, "logits", NAMES[dtype], "rows", None)
    assert [len(batch) for batch in source] == [4096, 4096, 808] and list(source.places) == [Place(0, i) for i in range(3)]
    assert np.concatenate([batch.image for batch in source if batch.image is not None]).tolist() == list(range(9000))
    expected = labels.float().numpy() if dtype == torch.bfloat16 else labels.numpy()
    assert np.concatenate([batch.labels for batch in source]).tobytes() == expected.tobytes()


def test_other_forms_of_a_tensor_are_read(tmp_path: Path) -> None:
    labels = draw()
    for number, item in enumerate(
        (
            torch.nn.Parameter(labels),
            {"labels": labels, "epoch": 3, "lr": torch.tensor(0.1)},
            labels.numpy(),
            labels.T.contiguous().T,
        )
    ):
        source = open_labels(saved(tmp_path / f"{number}.pt", item))
        assert (source.read(0).labels == labels.numpy()).all()


def test_probabilities_need_domain_probs(tmp_path: Path) -> None:
    probs = draw().softmax(1)
    saved(tmp_path / "labels.pt", probs)
    with pytest.raises(BadLabels, match="so these are probabilities; pass --domain probs"):
        list(open_labels(tmp_path / "labels.pt"))
    assert (open_labels(tmp_path / "labels.pt", domain="probs").read(0).labels == probs.numpy()).all()


@pytest.mark.parametrize("dtype", NAMES)
def test_a_packed_tensor_is_unpacked_bit_for_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    labels = draw(9000, dtype)
    source = open_labels(saved(tmp_path / "labels.pt", labels))
    vqlabel.pack(source, tmp_path / "a.vql", codec=vqlabel.fit(source, FitConfig(codec="raw"))[0])
    for out, how in (("back.pt", {}), ("back.pt.other", {"layout": "tensor"})):
        vqlabel.unpack(tmp_path / "a.vql", tmp_path / out, **how)
        back = torch.load(tmp_path / out, weights_only=True)
        assert back.dtype == dtype and torch.equal(back, labels) and back.is_contiguous()


def test_rows_are_written_in_the_order_of_the_images(tmp_path: Path) -> None:
    write(tmp_path / "labels.pt", [batch_of([3, 0]), batch_of([4], 1), batch_of([2, 1], 2)])
    assert torch.load(tmp_path / "labels.pt", weights_only=True).numpy().tobytes() == batch_of([0, 1, 2, 3, 4]).labels.tobytes()


@pytest.mark.parametrize(
    ("batches", "target", "about", "message"),
    [
        ([batch_of([0])], "tensor:f16", {}, r"tensor has no forms|leave \.pt out of its name"),
        (
            [batch_of([0])],
            "tensor",
            {"order": "none"},
            "tensor stores the label of image i in row i, but these records have no image index",
        ),
        (
            [batch_of([0, 1, 0])],
            "tensor",
            {},
            "tensor stores one label per image, but image 0 has several; write .npy, or keep one epoch",
        ),
        ([batch_of([0, 1]), batch_of([1], 1)], "tensor", {}, "tensor stores one label per image, but image 1 has several"),
        ([batch_of([0, 2]), batch_of([3], 1)], "tensor", {}, "tensor has a row for every image, but image 1 has no label"),
        ([batch_of([1 << 50])], "tensor", {}, "tensor has a row for every image, but image 0 has no label"),
        *(
            (
                [batch_of([0, 1], **{name: value})],
                "tensor",
                {},
                f"tensor cannot store {name}, .*: it stores one label per image, for all views of it",
            )
            for name, value in (
                ("crop", np.zeros((2, 4), np.float32)),
                ("flip", np.zeros(2, bool)),
                ("mix_lam", 0.5),
                ("seed", np.zeros(2, np.int64)),
            )
        ),
    ],
    ids=range(10),
)
def test_labels_that_a_tensor_cannot_store_are_refused(
    batches: list[LabelBatch], target: str, about: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        write(tmp_path / "labels.pt", batches, target, **about)
    assert not list(tmp_path.iterdir())


class Exploit:
    """Unpickling it calls os.system."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (torch.ones(6), r"shape \[6\]; labels must be \[n, C\] .*; stack the labels of all images into one array: np\.stack"),
        (torch.ones(6, 1), r"shape \[6, 1\]; labels must be \[n, C\] or"),
        (torch.ones(0, 5), r"shape \[0, 5\]; labels must be \[n, C\] or"),
        (torch.ones(2, 5, 15, 15), r"shape \[2, 5, 15, 15\]; .*looks like a label map of ReLabel: 5 values and 5 classes"),
        (
            torch.ones(6, 5, 7, 7),
            r"shape \[6, 5, 7, 7\]; .*; pool a label map \(a label for each position of an image\) to one label per image",
        ),
        (torch.arange(6), r"type int64; integers are hard labels or quantized outputs"),
        (
            torch.ones(6, 5).to(torch.float8_e4m3fn),
            r"contains a tensor of type torch\.float8_e4m3fn; labels must be float16, bfloat16 or float32",
        ),
        (torch.ones(1, 1).expand(1 << 40, 5), r"item 0 spans 21990232555520 bytes in a file of \d+"),
        (torch.eye(6).to_sparse(), "its pickle uses _rebuild_sparse_tensor of the module"),
        (torch.ones(6, 5, device="meta"), "its pickle uses _rebuild_meta_tensor_no_storage of the module"),
        (
            {"a": torch.ones(6, 5), "b": torch.ones(6, 5)},
            "several of its arrays may be the labels: 'a' .*, 'b' .*; name one with --array a",
        ),
        (
            {"fc.weight": torch.ones(6, 5), "fc.bias": torch.ones(6)},
            "several of its arrays may be the labels: 'fc.weight' .*--array fc.weight",
        ),
        ([torch.ones(6, 5)] * 40, r"its 40 arrays span 4800 bytes in a file of \d+; save each with \.clone\(\)"),
        ({"lr": 0.1}, r"contains dict, but no tensor of labels \[n, C\]: torch\.save\(labels, 'labels\.pt'\)"),
        (None, "contains NoneType, but no tensor of labels"),
        (Exploit(Path("ran")), r"its pickle calls posix\.system, which is code"),
    ],
    ids=range(16),
)
def test_a_file_without_labels_is_refused(item: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadLabels, match=rf"labels\.pt: {message}"):
        open_labels(saved(tmp_path / "labels.pt", item))
    assert [file.name for file in tmp_path.iterdir()] == ["labels.pt"]


def test_the_message_for_a_value_that_is_not_finite_has_its_row(tmp_path: Path) -> None:
    labels = draw(9000)
    labels[4099, 3] = torch.nan
    with pytest.raises(BadLabels, match=r"labels\.pt, rows from 4096, row 3: class 3 is nan; labels must be finite"):
        list(open_labels(saved(tmp_path / "labels.pt", labels)))


def test_every_truncated_file_is_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "labels.pt", draw()).read_bytes()
    for size in range(0, len(data), 37):
        (tmp_path / "labels.pt").write_bytes(data[:size])
        with pytest.raises(BadLabels, match=r"labels\.pt: (is an empty file|damaged torch\.save file)"):
            open_labels(tmp_path / "labels.pt")
