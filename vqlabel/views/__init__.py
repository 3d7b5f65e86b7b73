"""Records <-> the views that a teacher saw: drawn from a recipe, rendered from images. No torch but in augment/tensors.py.

`vqlabel.views.render_pil.render` renders with PIL, to the pixel; `vqlabel.views.render_torch.render` on any device.
"""

from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.recipe import DrawnColumns, Recipe

__all__ = ["DrawnColumns", "Pictures", "Recipe"]
