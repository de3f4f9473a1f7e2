"""JAX's persistent compilation cache, switched on by hand."""

import os
from pathlib import Path
from typing import Any

import jax


def enable_compilation_cache(folder: Any = None) -> Path:
    """Keep compiled programs on disk, so that a second process need not compile them again.

    Off unless called: compiled programs are executed as they are found, so the folder must be
    private to you and to this machine.

    Args:
        folder: where to; None is `decisionppl/jax` in the user's cache folder
            (`XDG_CACHE_HOME`, or `.cache` in the home folder). Made readable for you alone.

    Returns:
        The folder.

    Raises:
        PermissionError: the folder exists and others may write to it.

    Example:
        >>> import decisionppl as dp
        >>> folder = dp.enable_compilation_cache()  # doctest: +SKIP
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = base / "decisionppl" / "jax" if folder is None else Path(folder)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.name == "posix" and path.stat().st_mode & 0o022:
        raise PermissionError(
            f"{path}: others may write to this folder, and what it holds is executed. Use a "
            "folder of your own (chmod 700)."
        )
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
