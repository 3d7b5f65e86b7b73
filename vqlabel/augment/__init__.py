"""Records <-> the views that a teacher saw: drawn from a recipe, rendered from images. No torch but in augment/tensors.py.

`vqlabel.augment.views.views` renders with PIL, to the pixel; `vqlabel.augment.tensors.views` on any device.
"""

from vqlabel.augment.pictures import Pictures
from vqlabel.augment.recipe import DrawnColumns, Recipe

__all__ = ["DrawnColumns", "Pictures", "Recipe"]
