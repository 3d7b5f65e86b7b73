"""The storage formulas against the sizes printed in papers, and against each other."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from paths import ROOT

from vqlabel.errors import VqlabelError
from vqlabel.report.published import (
    DISK_BLOCK,
    RESNET18_FP16,
    SYSTEMS,
    Files,
    LabelSet,
    Storage,
    break_even,
    fkd,
    in_unit,
    lpld,
    lpqld,
    markdown_table,
    rded,
    sre2l,
    tinyvit,
    vqae,
)

IN1K_TRAIN, IN22K = 1_281_167, 14_197_122  # images
MILLION_KIB = 1000 * 1000 * 1024  # bytes; the unit that fits LPLD's "GB" on ImageNet-21K
IPC10 = LabelSet(images=10_000, views=300)


def in1k(ipc: int, batch: int = 128) -> LabelSet:
    return LabelSet(images=1000 * ipc, views=300, batch=batch)


def in21k(ipc: int) -> LabelSet:
    return LabelSet(images=10_450 * ipc, views=300, classes=10_450, batch=32, augmentation="cutout")


def tiny(ipc: int) -> LabelSet:
    return LabelSet(images=200 * ipc, views=100, classes=200, batch=64, augmentation="crop")


# Published sizes: equal in every printed digit, unless the test's name states a tolerance.


@pytest.mark.parametrize(("ipc", "printed"), [(10, "5.67"), (20, "11.33"), (50, "28.33"), (100, "56.66"), (200, "113.33")])
def test_sre2l_labels_in_batches_of_1024_take_the_printed_gib_on_disk(ipc: int, printed: str) -> None:
    assert f"{in_unit(sre2l(in1k(ipc, batch=1024)).disk_bytes, 'GiB'):.2f}" == printed


@pytest.mark.parametrize(("ipc", "printed"), [(10, "0.14"), (20, "0.29"), (50, "0.71"), (100, "1.43")])
def test_lpld_40x_label_files_sum_to_the_printed_gib(ipc: int, printed: str) -> None:
    assert f"{in_unit(lpld(in1k(ipc)).data_bytes, 'GiB'):.2f}" == printed


@pytest.mark.parametrize(
    ("top", "printed"),
    [(100, "0.13 0.25 0.63 1.27 2.54"), (50, "0.07 0.15 0.37 0.73 1.47"), (10, "0.03 0.06 0.14 0.29 0.58")],
)
def test_lpqld_labels_and_order_file_take_the_printed_gib_on_disk(top: int, printed: str) -> None:
    sets = [lpqld(in1k(ipc), top=top) for ipc in (10, 20, 50, 100, 200)]
    assert " ".join(f"{in_unit(s.disk_bytes, 'GiB'):.2f}" for s in sets) == printed


@pytest.mark.parametrize(("ipc", "files"), [(10, 2310), (200, 46_830)])
def test_lpqld_writes_fewer_files_than_its_pruning_ratio_leaves(ipc: int, files: int) -> None:
    assert lpqld(in1k(ipc)).files == (Files(files, 128),)


@pytest.mark.parametrize("per_epoch", [1, 2, 7, 30])
def test_lpqld_writes_as_many_files_as_its_generator_does_batch_by_batch(per_epoch: int) -> None:
    for views in range(20, 120):
        written = _lpqld_generator(views=views, per_epoch=per_epoch, pruned=0.9)
        assert lpqld(LabelSet(images=128 * per_epoch + 5, views=views)).files == (Files(written, 128),)


def test_lpqld_mr50_is_78_times_smaller_as_printed_within_one() -> None:
    for ipc in (10, 20, 50, 100, 200):
        ratio = sre2l(in1k(ipc, batch=1024)).disk_bytes / lpqld(in1k(ipc), top=50).disk_bytes
        assert 77 <= ratio < 79


@pytest.mark.parametrize(("ipc", "full", "pruned"), [(10, "643", "16"), (20, "1286", "32")])
def test_imagenet_21k_label_files_sum_to_the_printed_numbers_in_millions_of_kib(ipc: int, full: str, pruned: str) -> None:
    assert f"{sre2l(in21k(ipc)).data_bytes / MILLION_KIB:.0f}" == full
    assert f"{lpld(in21k(ipc)).data_bytes / MILLION_KIB:.0f}" == pruned


@pytest.mark.parametrize(("ipc", "printed_mb"), [(50, 449), (100, 898)])
def test_tiny_imagenet_s_printed_mb_lie_between_the_overheads_of_two_pytorch_versions(ipc: int, printed_mb: int) -> None:
    smallest, largest = (replace(sre2l(tiny(ipc)), file_bytes=overhead) for overhead in (1556, 2117))
    assert in_unit(smallest.data_bytes, "MB") < printed_mb < in_unit(largest.data_bytes, "MB")
    assert in_unit(largest.data_bytes, "MiB") < printed_mb


@pytest.mark.parametrize(("ipc", "printed"), [(50, "11"), (100, "22")])
def test_tiny_imagenet_lpld_40x_label_files_sum_to_the_printed_mb(ipc: int, printed: str) -> None:
    assert f"{in_unit(lpld(tiny(ipc)).data_bytes, 'MB'):.0f}" == printed


def test_fkd_full_softmax_records_take_the_2_3_tib_of_issue_7() -> None:
    full = fkd(LabelSet(images=IN1K_TRAIN, views=500), top=None)
    records = full.stored_labels * (full.label_bits + full.augmentation_bits) / 8
    assert f"{in_unit(records, 'TiB'):.1f}" == "2.3"


def test_tinyvit_values_take_the_printed_gib_and_its_keys_the_18_gib_of_issue_127() -> None:
    in1k_values = tinyvit(LabelSet(images=IN1K_TRAIN, views=300), top=10)
    in22k = tinyvit(LabelSet(images=IN22K, views=90, classes=21_841), top=100, key_bytes=15)
    assert f"{in_unit(in1k_values.data_bytes, 'GiB'):.0f}" == "16"
    assert f"{in_unit(in22k.data_bytes, 'GiB'):.0f}" == "481"
    assert f"{in_unit(in22k.order_bytes, 'GiB'):.0f}" == "18"


def test_hello_s_572_mb_of_labels_are_the_logits_alone_in_mib() -> None:
    labels = sre2l(in1k(1))
    assert f"{in_unit(labels.label_bits * labels.stored_labels / 8, 'MiB'):.0f}" == "572"


@pytest.mark.parametrize(
    ("storage", "label_bits", "augmentation_bits"),
    [
        (sre2l(IPC10), 16_000, 200),
        (sre2l(IPC10, number_bits=32), 32_000, 200),
        (sre2l(in21k(10)), 167_200, 352),
        (rded(IPC10), 16_000, 456),
        (lpqld(IPC10, top=10), 320, 80),
        (lpqld(in21k(10), top=200), 6400, 288),
        (fkd(IPC10, top=1), 64, 136),
        (fkd(IPC10, top=5), 320, 136),
        (fkd(IPC10, top=5, number_bits=16), 160, 72),
        (fkd(IPC10, top=None), 32_000, 136),
        (tinyvit(IPC10, top=100), 3200, 32),
        (vqae(IPC10, latent_width=128, code_width=8, codebook_size=256), 128, 0),
    ],
)
def test_a_record_has_the_bits_of_its_layout(storage: Storage, label_bits: int, augmentation_bits: int) -> None:
    assert (storage.label_bits, storage.augmentation_bits) == (label_bits, augmentation_bits)


# Parts that no paper prints, against the bytes that writers write.


def test_the_order_file_has_the_size_of_its_json() -> None:
    rng = random.Random(0)
    epochs = {str(epoch): rng.sample(range(1000), 1000) for epoch in range(10)}
    assert lpld(LabelSet(images=1000, views=40, batch=100), pruned=0.75).order_bytes == len(json.dumps(epochs))


def test_torch_save_adds_the_stated_bytes_to_a_batch_within_a_fifth(tmp_path: Path) -> None:
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("numpy")
    crop, flip, partner = torch.rand(128, 4), torch.zeros(128, dtype=torch.bool), torch.randperm(128)
    box = [numpy.int64(side) for side in (10, 20, 150, 200)]
    torch.save([crop, flip, partner, 0.4, box, torch.randn(128, 1000).half()], tmp_path / "batch_155.tar")
    added = (tmp_path / "batch_155.tar").stat().st_size - 128 * 2025
    assert added == pytest.approx(sre2l(IPC10).file_bytes, rel=0.2)  # 2064..2693 from PyTorch 2.2.2 to 2.13


def test_fkd_files_grow_as_pickled_numpy_arrays_do(tmp_path: Path) -> None:
    torch, numpy = pytest.importorskip("torch"), pytest.importorskip("numpy")
    rng = numpy.random.default_rng(0)
    crop = (rng.integers(0, 224, (500, 4)) / 224).astype(numpy.float32)
    best = numpy.stack([rng.integers(0, 1000, (500, 5)), rng.dirichlet(numpy.ones(5), 500)], axis=1)
    torch.save([crop, rng.random(500) < 0.5, best.astype(numpy.float32)], tmp_path / "image.tar")
    expected = fkd(LabelSet(images=1, views=500), top=5).data_bytes
    assert (tmp_path / "image.tar").stat().st_size == pytest.approx(expected, rel=0.05)


# Laws.


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_parts_of_a_rate_sum_to_it(name: str) -> None:
    s = SYSTEMS[name](IPC10)
    parts = s.label_bits + s.augmentation_bits + s.overhead_bits + s.fixed_bits
    assert parts == pytest.approx(s.bits_per_stored_label)
    assert s.bits_per_nominal_label * s.nominal_labels == pytest.approx(s.bits_per_stored_label * s.stored_labels)
    assert s.stored_labels <= s.nominal_labels == 3_000_000
    assert s.total_bytes <= s.disk_bytes


@pytest.mark.parametrize("system", [lpqld, fkd, tinyvit])
def test_more_kept_classes_take_more_bytes(system: Callable[..., Storage]) -> None:
    sizes = [system(IPC10, top=top).total_bytes for top in (1, 2, 5, 10, 100, 1000)]
    assert sizes == sorted(set(sizes))


def test_more_views_or_images_take_more_bytes() -> None:
    for system in SYSTEMS.values():
        sizes = [system(LabelSet(images=i, views=v)).total_bytes for i, v in ((1000, 50), (1000, 100), (2000, 100))]
        assert sizes == sorted(set(sizes))


def test_twice_the_codebook_size_adds_one_bit_per_code() -> None:
    rates = [vqae(IPC10, codebook_size=k).label_bits for k in (2, 4, 8, 256, 512)]
    assert rates == [16, 32, 48, 128, 144]


def test_half_the_code_width_takes_twice_the_bits_and_at_twice_k_the_same_codebook_bytes() -> None:
    wide, narrow = (vqae(IPC10, code_width=d_c, codebook_size=16) for d_c in (8, 4))
    assert narrow.label_bits == 2 * wide.label_bits
    assert vqae(IPC10, code_width=4, codebook_size=32).fixed_bytes == wide.fixed_bytes


def test_a_code_takes_log2_of_the_codebook_size_between_powers_of_two_too() -> None:
    assert 2 ** (vqae(IPC10, latent_width=8, codebook_size=1000).label_bits) == pytest.approx(1000)


def test_the_fixed_part_of_vqae_is_codebooks_and_decoder_whatever_the_number_of_labels() -> None:
    few, many = (vqae(LabelSet(images=i, views=300), codebooks=16, decoder_parameters=1_000_000) for i in (1000, 200_000))
    assert few.fixed_bytes == many.fixed_bytes == 2 * (16 * 256 * 8 + 1_000_000)


@pytest.mark.parametrize("pruned", [0.5, 0.9, 0.95, 0.975])
def test_pruning_scales_the_data_and_keeps_the_bytes_per_stored_label(pruned: float) -> None:
    whole = LabelSet(images=128 * 80, views=200)  # whole batches: drop_last drops nothing
    full, kept = sre2l(whole), lpld(whole, pruned=pruned)
    assert kept.data_bytes == pytest.approx((1 - pruned) * full.data_bytes, rel=1e-3)
    assert kept.data_bytes / kept.stored_labels == full.data_bytes / full.stored_labels


def test_lpld_40x_takes_405_record_bits_per_nominal_label() -> None:
    kept = lpld(LabelSet(images=12_800, views=300))
    share = kept.stored_labels / kept.nominal_labels
    assert (kept.label_bits + kept.augmentation_bits) * share == pytest.approx(405)


def test_lpld_40x_of_300_epochs_writes_eight_epoch_folders() -> None:
    assert lpld(IPC10).directories == 1 + 8


def test_lpld_without_pruning_is_sre2l_with_an_order_file() -> None:
    assert lpld(IPC10, pruned=0).data_bytes == sre2l(IPC10).data_bytes


def test_disk_bytes_are_whole_blocks_of_files_and_directories() -> None:
    storage = replace(vqae(IPC10), files=(Files(3, 8),), file_bytes=1, directories=2, fixed_bytes=DISK_BLOCK)
    assert storage.disk_bytes == (3 + 2 + 1) * DISK_BLOCK


def test_at_the_break_even_the_labels_are_just_no_larger_than_the_teacher() -> None:
    codes = vqae(IPC10)
    labels = break_even(RESNET18_FP16, codes.label_bits, codes.fixed_bytes)
    assert codes.fixed_bytes + labels * codes.label_bits / 8 <= RESNET18_FP16
    assert codes.fixed_bytes + (labels + 1) * codes.label_bits / 8 > RESNET18_FP16
    assert break_even(7_000_000, 8 * 7_000_000 / 300_000) == 300_000


def test_the_break_even_is_zero_if_the_decoder_is_larger_than_the_teacher() -> None:
    assert break_even(1000, 8.0, fixed_bytes=1001) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelSet(images=0, views=1), "images is 0; it must be at least 1"),
        (lambda: lpqld(IPC10, top=1001), r"top is 1001; it must be 1\.\.1000"),
        (lambda: fkd(IPC10, top=0), "top is 0; it must be None or"),
        (lambda: lpld(IPC10, pruned=1.0), r"pruned is 1\.0; it must be in \[0, 1\)"),
        (lambda: lpld(LabelSet(images=100, views=300)), "at least one complete batch of 128"),
        (lambda: vqae(IPC10, codebook_size=1), "codebook_size is 1"),
        (lambda: vqae(IPC10, latent_width=100), "must be a multiple of code_width = 8"),
        (lambda: break_even(10, 0.0), r"bits_per_label is 0\.0"),
    ],
)
def test_invalid_settings_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(VqlabelError, match=message):
        call()


def test_the_documented_table_is_the_printed_one() -> None:
    assert markdown_table(IPC10) in (ROOT / "docs" / "accounting.md").read_text(encoding="utf-8")


def test_the_command_prints_the_table() -> None:
    assert _python("-m", "vqlabel.report.published") == markdown_table(IPC10) + "\n"


def test_the_formulas_load_no_torch() -> None:
    assert _python("-c", "import sys, vqlabel.report.published; print('torch' in sys.modules)") == "False\n"


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _lpqld_generator(*, views: int, per_epoch: int, pruned: float) -> int:
    """Files written by LPQLD's loop, which lowers its target by one after every epoch."""
    target, written = int(views * per_epoch * (1 - pruned)), 0
    for _ in range(target // per_epoch + 1):
        for _ in range(per_epoch):
            written += 1
            if written == target:
                break
        target -= 1
    return written
