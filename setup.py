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
    extras_require={"notebooks": notebooks, "dev": notebooks + dev},
    entry_points={"console_scripts": cfg["console_scripts"].split("\n")},
)
