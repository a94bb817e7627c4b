"Hands the version, requirements and commands of settings.ini to setuptools; pyproject.toml holds the rest."
from configparser import ConfigParser
from pathlib import Path
from setuptools import setup, find_packages

config = ConfigParser()
config.read(Path(__file__).with_name('settings.ini'), encoding='utf-8')
cfg = config['DEFAULT']
tail = '_requirements'

setup(
    version=cfg['version'],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']),
    include_package_data=True,  # what MANIFEST.in names: the shipped model
    install_requires=cfg['requirements'].split(),
    extras_require={key[:-len(tail)]: cfg[key].split() for key in cfg if key.endswith(tail)},
    entry_points=dict(
        console_scripts=cfg['console_scripts'].split(),
        **{'lm_eval.models': cfg['lm_eval_models'].split(), 'vllm.general_plugins': cfg['vllm_plugins'].split()},
        nbdev=[f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    ),
    zip_safe=False,
)
