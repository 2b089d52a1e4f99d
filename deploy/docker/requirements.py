"""Print what the project needs, one requirement a line, from the pyproject.toml in the current folder.

Lets an image install these packages in a layer of their own, which a change of the sources leaves alone.
Arguments are extras to add.
"""

import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = [line for name in sys.argv[1:] for line in project["optional-dependencies"][name]]
print("\n".join([*project["dependencies"], *extras]))
