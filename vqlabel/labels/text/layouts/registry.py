"""Every layout of text dumps by its name, in the order in which they are tried."""

from vqlabel.labels.text.layouts import arrays, distillkit, hidden, prompt_logprobs
from vqlabel.labels.text.layouts.layout import TextLayout

TEXT_LAYOUTS: dict[str, TextLayout] = {
    "hidden": hidden.LAYOUT,
    "arrays": arrays.LAYOUT,
    "distillkit": distillkit.LAYOUT,
    "prompt_logprobs": prompt_logprobs.LAYOUT,
}
