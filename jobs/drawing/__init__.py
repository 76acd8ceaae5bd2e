"""Images for people: training curves, confusion matrices and contact sheets."""

import logging

from logpose.common.cache_folder import share_folder

# Before Matplotlib is imported, which would otherwise say on standard error where it keeps its list of fonts.
share_folder("MPLCONFIGDIR", "~/.config/matplotlib", "matplotlib")
logging.getLogger("matplotlib").setLevel(logging.ERROR)
