"""Records <-> the views that a teacher saw: drawn from a recipe, rendered from images.

`vqlabel.views.render_pil.render` renders with PIL, `vqlabel.views.render_torch.render` renders the same pixels on any
device, and is the only module here that imports torch.
"""

from vqlabel.views.image_folder import ImageFolder
from vqlabel.views.recipe import DrawnColumns, Recipe

__all__ = ["DrawnColumns", "ImageFolder", "Recipe"]
