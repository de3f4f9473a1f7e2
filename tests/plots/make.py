"""Draw the stored images anew, after a change of a plot that was meant: look at each of them.

python tests/plots/make.py [NAME ...]
"""

import sys

from plot_cases import CASES, FOLDER, picture

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for case in sys.argv[1:] or CASES:
        picture(case, FOLDER / f"{case}.png")
        print(FOLDER / f"{case}.png")
