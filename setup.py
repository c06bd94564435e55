"Build the package from settings.ini, so that what it needs is written in one place."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

notebooks, dev = cfg["notebooks_requirements"].split(), cfg["dev_requirements"].split()
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    keywords=cfg["keywords"],
    packages=["course_lib"],
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require={"notebooks": notebooks, "dev": notebooks + dev},
    entry_points={"console_scripts": cfg["console_scripts"].split("\n")},
)
