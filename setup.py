"Build the package from settings.ini, so that what it needs is written in one place."
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup

config = ConfigParser(delimiters=["="])
config.read("settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]

parts = ("streets", "tables", "pretrained", "notebooks", "dev")
extras = {name: cfg[f"{name}_requirements"].split() for name in parts}
extras["notebooks"] += extras["streets"]
extras["dev"] += extras["notebooks"] + extras["tables"]
extras["all"] = [*extras["notebooks"], *extras["tables"], *extras["pretrained"]]
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=["Development Status :: 3 - Alpha", "Intended Audience :: Education",
                 "Intended Audience :: Developers", "Topic :: Scientific/Engineering :: Image Recognition",
                 "Programming Language :: Python :: 3", "Operating System :: OS Independent",
                 "Typing :: Typed"],
    packages=["course_lib"],
    package_data={"course_lib": ["py.typed"]},
    python_requires=f">={cfg['min_python']}",
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split("\n")},
)
