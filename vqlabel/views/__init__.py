"""Records <-> the views that a teacher saw: drawn from a recipe, rendered from images. No torch but in augment/tensors.py.

`vqlabel.views.render_pil.views` renders with PIL, to the pixel; `vqlabel.views.render_torch.views` on any device.
"""

from vqlabel.views.image_folder import Pictures
from vqlabel.views.recipe import DrawnColumns, Recipe

__all__ = ["DrawnColumns", "Pictures", "Recipe"]
