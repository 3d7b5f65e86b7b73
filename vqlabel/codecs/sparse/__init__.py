"""Labels of which k numbers are known."""
