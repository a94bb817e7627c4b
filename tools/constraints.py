"Check that constraints.txt pins each direct requirement once, within its bounds; with `--installed`, that it is what is here."
import re, sys
from configparser import ConfigParser
from importlib.metadata import metadata, version
from pathlib import Path
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).resolve().parents[1]
PYTHONS = '3.10', '3.11', '3.12'
config = ConfigParser()
config.read(TOP/'settings.ini', encoding='utf-8')
cfg = config['DEFAULT']


def holds(pin, python): return pin.marker is None or pin.marker.evaluate(dict(python_version=python))


def release(pin): return str(pin.specifier).removeprefix('==')


def read(lines):
    "Names and requirements; a name may come more than once."
    found = [Requirement(line) for line in lines if line.strip() and not line.startswith('#')]
    return [(canonicalize_name(r.name), r) for r in found]


def bounds(direct, pins):
    "What is wrong between the requirements and their pins."
    for name in sorted(dict(pins).keys() - dict(direct).keys()): yield f'{name} is no direct requirement: leave it to pip'
    for name, pin in pins:
        if not re.fullmatch(r'==[\w.]+', str(pin.specifier)):
            yield f'{name}: write one exact release, as in {name}==1.2.3, not {pin}'
    for name, wanted in direct:
        for python in PYTHONS:
            here = [pin for other, pin in pins if other == name and holds(pin, python)]
            if len(here) != 1: yield f'{name} has {len(here)} pins on Python {python}'
            yield from (f'{pin} is outside of {wanted}' for pin in here if not wanted.specifier.contains(release(pin)))


def installed(pins):
    "What is wrong between the pins and this environment; what is here must also run wherever its line holds."
    for name, pin in pins:
        if not holds(pin, '{}.{}'.format(*sys.version_info)): continue
        if Version(version(name)).public != release(pin):
            yield f'{name}: {version(name)} is installed, constraints.txt says {release(pin)}'
            continue
        runs = Requirement('python' + (metadata(name)['Requires-Python'] or '')).specifier
        gone = [python for python in PYTHONS if holds(pin, python) and not runs.contains(python + '.0')]
        if gone: yield f'{pin} does not run on Python {", ".join(gone)}: take an older one, or give it a line of its own'


direct = read((cfg['requirements'] + ' ' + cfg['dev_requirements']).split())
pins = read((TOP/'constraints.txt').read_text(encoding='utf-8').splitlines())
wrong = list(bounds(direct, pins)) or list(installed(pins) if '--installed' in sys.argv else [])
print(*dict.fromkeys(wrong) or [f'{len(pins)} lines in step'], sep='\n')
sys.exit(bool(wrong))
