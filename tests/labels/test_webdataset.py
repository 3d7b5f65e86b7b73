"""WebDataset archives -> labels: the member with one suffix of every sample, in order, named by its key."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vqlabel.errors import BadLabels, UsageError
from vqlabel.labels import open_labels

Z = np.random.default_rng(0).normal(size=(12, 7)).astype(np.float16)
KEYS = [f"n{at % 3:02}/img_{at}" for at in range(12)]


def encoded(value: Any) -> bytes:
    data = io.BytesIO()
    if isinstance(value, bytes):
        return value
    torch.save(value, data) if isinstance(value, torch.Tensor) else np.save(data, value)
    return data.getvalue()


def write(path: Path, members: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, value in members.items():
            info, data = tarfile.TarInfo(name), encoded(value)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def samples(rows: range, suffix: str = "logits.npy") -> dict[str, Any]:
    members: dict[str, Any] = {}
    for at in rows:
        members |= {f"{KEYS[at]}.jpg": b"jpeg", f"{KEYS[at]}.cls": b"3", f"._{at}.npy": b"mac"}
        members[f"{KEYS[at]}.{suffix}"] = torch.from_numpy(Z[at]) if suffix.endswith(("pth", "pt")) else Z[at]
    return members


@pytest.mark.parametrize("suffix", ["logits.npy", "npy", "pth", "logits.pt"])
def test_shards_are_read_in_order_and_keep_their_keys(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / "set" / "shard-000000.tar", samples(range(8), suffix))
    write(tmp_path / "set" / "shard-000001.tar", samples(range(8, 12), suffix))
    source = open_labels(tmp_path / "set")
    assert (source.layout, source.classes, source.dtype, source.order) == ("arrays", 7, "F16", "rows")
    assert list(source.about.names or ()) == KEYS
    batches = list(source)
    assert (np.concatenate([batch.labels for batch in batches]) == Z).all()
    assert [batch.image.tolist() for batch in batches if batch.image is not None] == [list(range(8)), list(range(8, 12))]
    assert source.notes == [f"{tmp_path / 'set'}: 2 files concatenated, shard-000000.tar to shard-000001.tar"]


def test_a_single_archive_is_read_and_a_suffix_can_be_selected(tmp_path: Path) -> None:
    members = samples(range(12)) | {f"{key}.features.npy": np.arange(3, dtype=np.float32) - 1 for key in KEYS}
    path = write(tmp_path / "a.tar", members)
    source = open_labels(path)
    assert (source.read(0).labels == Z).all() and "not read: 'features.npy' float32 [12, 3]" in source.notes[0]
    assert open_labels(path, array="features.npy").classes == open_labels(f"{path}:features.npy").classes == 3
    with pytest.raises(UsageError, match=r"--array x: .*name one of them"):
        open_labels(path, array="x")


def test_several_views_of_a_sample_are_epochs(tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(size=(12, 4, 7)).astype(np.float16)
    source = open_labels(write(tmp_path / "a.tar", {f"{key}.logits.npy": z[at] for at, key in enumerate(KEYS)}))
    assert [place.epoch for place in source.places] == [0, 1, 2, 3] and list(source.about.names or ()) == KEYS
    assert (np.stack([batch.labels for batch in source]) == z.transpose(1, 0, 2)).all()


def test_repeated_keys_are_not_used_as_names(tmp_path: Path) -> None:
    for shard in range(2):
        write(tmp_path / "set" / f"{shard}.tar", samples(range(8)))
    source = open_labels(tmp_path / "set")
    assert source.about.names is None and source.order == "none" and sum(map(len, source)) == 16


def test_samples_without_a_label_are_counted_in_a_note(tmp_path: Path) -> None:
    members = samples(range(12))
    del members[f"{KEYS[5]}.logits.npy"]
    source = open_labels(write(tmp_path / "a.tar", members))
    assert any(note.endswith("11 of 12 samples have a member .logits.npy; the others have no label") for note in source.notes)
    assert list(source.about.names or ()) == KEYS[:5] + KEYS[6:]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"a.jpg": b"x", "a.cls": b"3"},
            r"a tar archive without labels: it has members \.cls, \.jpg, but none such as KEY\.logits\.npy",
        ),
        ({"a.npy": Z[0], "b.npy": Z[0][:5]}, r"b\.npy is float16 \[5\]; the first one is float16 \[7\]"),
        ({"a.npy": Z[0], "b.npy": Z[0].astype(np.float32)}, r"b\.npy is float32 \[7\]; the first one is float16 \[7\]"),
        ({"a.npy": Z[0], "b.npy": b"garbage"}, r"b\.npy is not readable as \.npy"),
        ({"a.npy": Z[0], "b.npy": encoded(Z[0])[:-2]}, r"b\.npy: float16 \[7\] in 140 bytes; it is damaged"),
        ({"a.npy": encoded(Z[0]).replace(b"(7,), ", b"(7000000000,), "[:6])}, r"a\.npy"),
        ({"a.pth": b"garbage"}, r"a\.tar: a\.pth: "),
        ({"a.npy": np.array([{}], object)}, r"a\.npy"),
    ],
    ids=range(8),
)
def test_members_that_are_not_labels_are_refused_with_their_name(members: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadLabels, match=message):
        list(open_labels(write(tmp_path / "a.tar", members)))


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(range(3)))
    data = path.read_bytes()
    last = max(at for at in range(0, len(data), 512) if data[at : at + 512] != bytes(512)) + 512
    for size in range(512, last + 1, 256):
        path.write_bytes(data[:size])
        with pytest.raises(BadLabels, match=r"a\.tar: (ends at byte|not readable|a tar archive without)"):
            list(open_labels(path, layout="arrays"))


def test_links_devices_and_folders_in_an_archive_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", samples(range(3)))
    with tarfile.open(path, "a") as archive:
        for name, kind in (("x.npy", tarfile.SYMTYPE), ("y.npy", tarfile.CHRTYPE), ("z.npy", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    assert (open_labels(path).read(0).labels == Z[:3]).all()
