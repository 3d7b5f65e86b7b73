"""Losses of a student on stored labels.

Plain functions of tensors on any device, for any training loop. Labels are those of `VqlDataset`, of any floating-point
dtype; losses are computed in float32, and no gradient flows into the labels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vqlabel.config import check_labels
from vqlabel.errors import UsageError, require
from vqlabel.labels.batch import NOWHERE
from vqlabel.labels.checks import SUM_TOLERANCE
from vqlabel.training.loss_checks import check_argument_type, check_pair, check_temperature

_CHECKED: set[tuple[str, int, str]] = set()  # (domain, classes, device type) of which a batch was checked


def kl(
    student_logits: Tensor,
    labels: Tensor,
    temperature: float = 20.0,
    *,
    student_temperature: float | None = None,
    squared: bool = False,
    domain: str = "logits",
) -> Tensor:
    """KL(softmax(labels / T) || softmax(student_logits / T_s)) in nats, averaged over labels:
    nn.KLDivLoss("batchmean").

    SRe2L, CDA, LPLD and RDED train with T = 20, without the factor T^2 that makes the gradient's scale independent of
    T. On labels with only k known classes (from a `topk` or `sparse` codec, or `top_k`) this is LPQLD's MR-k loss.

    Args:
        student_logits: [n, C].
        labels: [n, C].
        temperature: T, above 0; must be 1 for probabilities.
        student_temperature: T_s, above 0; None: T.
        squared: whether to multiply by T^2.
        domain: domain of the labels, "logits" or "probs" (`VqlDataset.domain`). `VqlDataset.loss` knows it.

    Raises:
        UsageError: shapes differ, a temperature is not above 0, probabilities have a temperature other than 1, or the
            labels are not of the domain (on a GPU only the first batch is checked).
    """
    check_pair(student_logits, labels)
    target = targets(labels, temperature, domain)
    tau = temperature if student_temperature is None else student_temperature
    check_temperature("student_temperature", tau)
    check_argument_type("squared", squared, bool)
    loss = F.kl_div(F.log_softmax(student_logits.float() / tau, 1), target, reduction="batchmean")
    return loss * temperature**2 if squared else loss


def targets(labels: Tensor, temperature: float = 20.0, domain: str = "logits") -> Tensor:
    """[n, C] labels -> [n, C] float32 distributions: softmax(labels / T), or probabilities normalised to sum to 1.

    Args:
        labels: [n, C].
        temperature: T, above 0; must be 1 for probabilities.
        domain: domain of the labels, "logits" or "probs".

    Raises:
        UsageError: see `kl`.
    """
    _check_rows(labels)
    check_labels(labels.shape[1], domain)
    check_temperature("temperature", temperature)
    values = labels.detach().float()
    _check_distribution(domain)
    _check_rows_are(domain, values)
    if domain == "logits":
        return F.softmax(values / temperature, 1)
    limit = "must be 1 for probs: probabilities rounded to 0 cannot be recovered at another temperature; set student_temperature instead"
    require(temperature == 1, "temperature", temperature, limit)
    return values / values.sum(1, keepdim=True)


def top_k(labels: Tensor, k: int, domain: str = "logits") -> Tensor:
    """Keep the k largest values of each label: LPQLD's MR-k for logits, FKD's labels for probabilities.

    The other classes have probability 0 at every temperature up to 500, so a softmax over all C classes equals one over
    the k. Kept probabilities are normalised to sum to 1.

    Args:
        labels: [n, C].
        k: number of classes to keep, 1..C.
        domain: domain of the labels, "logits" or "probs".

    Returns:
        [n, C] float32.

    Raises:
        UsageError: k is not in 1..C, the labels are not [n, C], or the domain is another one.
    """
    _check_rows(labels)
    check_labels(labels.shape[1], domain)
    check_argument_type("k", k, int)
    _check_distribution(domain)
    _check_rows_are(domain, labels.detach().float())
    require(1 <= k <= labels.shape[1], "k", k, f"must be 1..{labels.shape[1]} (the number of classes)")
    values, classes = labels.float().topk(k, 1)
    if domain == "probs":
        values = values / values.sum(1, keepdim=True)
    rest = torch.full(labels.shape, NOWHERE if domain == "logits" else 0.0, dtype=torch.float32, device=labels.device)
    return rest.scatter(1, classes, values)


def bce(student_logits: Tensor, labels: Tensor, temperature: float = 1.0, *, squared: bool = False) -> Tensor:
    """Binary cross entropy between sigmoid(labels / T) and sigmoid(student_logits / T), averaged over all n * C:
    nn.BCEWithLogitsLoss.

    For labels of the domain "sigmoid", with an independent probability for each class. The loss is the binary KL plus
    the labels' entropy, which does not depend on the student.

    Args:
        student_logits: [n, C].
        labels: [n, C] logits.
        temperature: T of both, above 0.
        squared: whether to multiply by T^2, which makes the gradient's scale independent of T.

    Raises:
        UsageError: shapes differ, or the temperature is not above 0.
    """
    check_pair(student_logits, labels)
    check_temperature("temperature", temperature)
    check_argument_type("squared", squared, bool)
    target = torch.sigmoid(labels.detach().float() / temperature)
    loss = F.binary_cross_entropy_with_logits(student_logits.float() / temperature, target)
    return loss * temperature**2 if squared else loss


def mse_gt(student_logits: Tensor, labels: Tensor, target: Tensor, weight: float = 0.1, *, domain: str = "logits") -> Tensor:
    """Squared error of logits, averaged over all n * C, plus `weight` * cross entropy with the true classes;
    G-VBSM: 0.1, EDC: 0.025.

    Unlike KL, it depends on the mean of a label over its classes. The `raw` codec stores that exactly, a vqae
    approximately (`stats --against` reports the error as `mse`), `topk` and `sparse` not at all, because most logits
    are unknown.

    Args:
        student_logits: [n, C].
        labels: [n, C] logits.
        target: [n] integer, the true classes.
        weight: weight of the cross entropy.
        domain: domain of the labels, "logits" or "sigmoid".

    Raises:
        UsageError: shapes differ, or the labels are probabilities.
    """
    check_pair(student_logits, labels)
    check_labels(labels.shape[1], domain)
    if domain == "probs":
        raise UsageError("mse_gt compares logits, but these labels are probabilities; use kl at temperature 1")
    check_argument_type("target", target, Tensor)
    is_valid = target.shape == student_logits.shape[:1] and not target.is_floating_point()
    require(is_valid, "target", f"{target.dtype} {list(target.shape)}", f"must be {len(labels)} integers, the true classes")
    check_argument_type("weight", weight, float)
    student = student_logits.float()
    error = (
        (student - labels.detach().float()).square().mean()
    )  # not mse_loss: it saves its target, and inference tensors cannot be saved
    return error + weight * F.cross_entropy(student, target)


def _check_rows(labels: Tensor) -> None:
    check_argument_type("labels", labels, Tensor)
    require(labels.dim() == 2, "shape of labels", list(labels.shape), "must be [n, C], one row per label")


def _check_rows_are(domain: str, values: Tensor) -> None:
    """Refuse rows that contradict the domain: probabilities given as logits are nearly uniform targets at T = 20.

    On the CPU every batch is checked. Elsewhere a check waits for the device, so it is made of the first batch of a
    process for each domain and number of classes. Compiled code is not checked.
    """
    key = domain, values.shape[1], values.device.type
    if torch.compiler.is_compiling() or not len(values) or (values.device.type != "cpu" and key in _CHECKED):
        return
    total, smallest = values.sum(1), values.min()
    if domain == "logits" and bool((smallest >= 0) & (abs(total - 1) <= SUM_TOLERANCE).all()):
        raise UsageError(
            "labels are non-negative and every row sums to 1, so they are probabilities, but domain is 'logits'; pass domain='probs' and "
            "temperature=1, or use the loss of their dataset, `VqlDataset.loss`"
        )
    if domain == "probs" and not bool((smallest >= -SUM_TOLERANCE) & (total <= 1 + SUM_TOLERANCE).all() & (total > 0).all()):
        raise UsageError(
            f"labels range from {float(smallest):.4g} and rows sum to {float(total.min()):.4g} to {float(total.max()):.4g}, so they are no "
            "probabilities, but domain is 'probs'; pass domain='logits', or use the loss of their dataset, `VqlDataset.loss`"
        )
    _CHECKED.add(key)


def _check_distribution(domain: str) -> None:
    limit = "must be logits or probs, one distribution per label; use bce for sigmoid labels"
    require(domain != "sigmoid", "domain", domain, limit)
