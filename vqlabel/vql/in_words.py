"""Numbers of a file -> words of its description."""


def in_bytes(size: int) -> str:
    """536 kB, 5.4 MB: three digits and a decimal unit."""
    units = ("B", "kB", "MB", "GB", "TB")
    step = next((step for step in range(len(units)) if size < 999.5 * 1000**step), len(units) - 1)
    return f"{size / 1000**step:.3g} {units[step]}"
